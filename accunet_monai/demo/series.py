"""The demo's volumes as DICOM: for whoever wants to try a PACS and has no images at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from accunet_monai.demo.hippocampus import CENTRE_MM, SIDES, box_around, load_average_brain
from accunet_monai.volumes import Volume
from accunet_monai.volumes.dicom_derived import MANUFACTURER, MODEL_NAME, content_uid
from accunet_monai.volumes.geometry import lps_from_ras

PATIENT_ID = "ACCUNET-DEMO"
_MOMENT = ("20090101", "120000")  # the same each time, so that the files are
_GREY = 4095  # the brightest value of a crop, 12 bits


def write_demo_series(folder: Path, brain: Volume | None = None) -> list[Path]:
    """Write the two boxes of the demo, one around each hippocampus, as MR series of one study.

    Args:
        folder: gets a folder for each side.
        brain: a T1 image in MNI space, 1 mm, RAS; by default the average brain.

    Returns:
        The folders, left and right.
    """
    brain = brain or load_average_brain()
    folders = []
    for number, (side, sign) in enumerate(SIDES.items(), start=1):
        _, box = box_around(brain, np.array(CENTRE_MM) * (sign, 1, 1))
        write_mr_series(folder / side, box, f"MNI152 average T1, {side} hippocampus", number)
        folders.append(folder / side)
    return folders


def write_mr_series(folder: Path, volume: Volume, description: str, number: int) -> None:
    """Write a volume as a classic MR series, an axial slice a file, as scanners do; the same volume, the same files.

    Grey values are scaled to 12 bits: a series has whole numbers.

    Args:
        folder: made when missing.
        volume: in any orientation.
        description: of the series, ASCII.
        number: of the series in its study; all belong to one patient and one study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    volume = volume.reoriented("LPS")
    grey = np.rint(volume.array / volume.array.max() * _GREY).clip(0).astype("<u2")
    common = _common(volume, content_uid("demo series", grey.tobytes().hex()), description, number)
    lps = lps_from_ras(volume.affine_ras)
    for k in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = UID(content_uid("demo slice", common.SeriesInstanceUID, k))
        ds = Dataset(common)
        ds.file_meta = meta
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.InstanceNumber = k + 1
        ds.ImagePositionPatient = _numbers((lps @ (0, 0, k, 1))[:3])
        ds.PixelData = grey[:, :, k].T.tobytes()
        ds.save_as(folder / f"{k + 1:03d}.dcm", enforce_file_format=True)


def _common(volume: Volume, series: str, description: str, number: int) -> Dataset:
    """What all slices of a series have."""
    lps = lps_from_ras(volume.affine_ras)
    x, y, z = np.linalg.norm(lps[:3, :3], axis=0)
    ds = Dataset()
    ds.StudyInstanceUID, ds.FrameOfReferenceUID = content_uid("demo study"), content_uid("demo frame of reference")
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.SeriesDescription = series, number, description
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = PATIENT_ID, "Average^Brain", "", "O"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "", ""
    ds.StudyDate, ds.StudyTime, ds.StudyDescription = *_MOMENT, "accunet demo, not a person"
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "MR", MANUFACTURER, MODEL_NAME
    ds.BodyPartExamined, ds.PatientPosition, ds.PositionReferenceIndicator = "BRAIN", "HFS", ""
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "RM", "NONE", "", "3D"
    ds.EchoTime, ds.EchoTrainLength, ds.RepetitionTime = "", "", ""
    ds.ImageOrientationPatient = _numbers((*lps[:3, 0] / x, *lps[:3, 1] / y))
    ds.PixelSpacing, ds.SliceThickness = _numbers((y, x)), _numbers((z,))[0]
    ds.Columns, ds.Rows = volume.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    return ds


def _numbers(values: Any) -> list[str]:
    return [format_number_as_ds(float(value)) for value in values]
