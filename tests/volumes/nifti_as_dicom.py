"""A volume as a classic MR series: one file a slice, written by pydicom, in the array's own order of axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from accunet_monai.volumes import Volume
from accunet_monai.volumes.geometry import lps_from_ras


def write_series(folder: Path, volume: Volume, description: str = "made") -> str:
    """Writes the series in an order of files that says nothing of the slices' order; returns its SeriesInstanceUID.

    The values must be whole numbers of 0 to 32767.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = lps_from_ras(volume.affine_ras)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    rows, columns = lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]
    study, series, frame = (generate_uid(entropy_srcs=[description, name]) for name in ("study", "series", "frame"))
    order = np.random.default_rng(0).permutation(volume.shape[2])
    for k in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[description, str(k)])
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "made-1", "Made^Series", "", "O"
        ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "", ""
        ds.StudyDate, ds.StudyTime, ds.Modality, ds.SeriesDescription = "20240229", "101500", "MR", description
        ds.SeriesNumber, ds.InstanceNumber, ds.ImageType = 1, int(order[k]) + 1, ["ORIGINAL", "PRIMARY"]
        ds.ImageOrientationPatient = [format_number_as_ds(float(value)) for value in (*rows, *columns)]
        ds.ImagePositionPatient = [format_number_as_ds(float(value)) for value in (lps @ (0, 0, k, 1))[:3]]
        ds.PixelSpacing = [format_number_as_ds(float(spacing[1])), format_number_as_ds(float(spacing[0]))]
        ds.SliceThickness = format_number_as_ds(float(spacing[2]))
        ds.Columns, ds.Rows = volume.shape[:2]
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        ds.PixelData = volume.array[:, :, k].T.astype("<u2").tobytes()
        ds.save_as(folder / f"{order[k]:03d}", enforce_file_format=True)
    return str(series)
