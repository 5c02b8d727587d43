"""Small DICOM series made here with pydicom, together with the image that a reader should make of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from accunet_monai.volumes import Volume
from accunet_monai.volumes.dicom_source import DicomSource, SourceFrame
from accunet_monai.volumes.planes import PlaneStack

CLASSES = {
    ("CT", False): "1.2.840.10008.5.1.4.1.1.2",
    ("MR", False): "1.2.840.10008.5.1.4.1.1.4",
    ("CT", True): "1.2.840.10008.5.1.4.1.1.2.1",
    ("MR", True): "1.2.840.10008.5.1.4.1.1.4.1",
}
ROOT_UID = "1.2.826.0.1.3680043.10.9999"


@dataclass(frozen=True)
class Geometry:
    """Of a stack of planes in LPS mm: ``axes`` (3, 2) unit row and column direction, ``origins`` (N, 3)."""

    axes: np.ndarray
    origins: np.ndarray
    spacing: tuple[float, float]  # along a row (columns i), along a column (rows j)
    shape: tuple[int, int]  # X columns, Y rows

    @property
    def affines_ras(self) -> np.ndarray:
        result = np.tile(np.eye(4), (len(self.origins), 1, 1))
        result[:, :3, 0] = self.axes[:, 0] * self.spacing[0]
        result[:, :3, 1] = self.axes[:, 1] * self.spacing[1]
        result[:, :3, 2] = np.cross(self.axes[:, 0], self.axes[:, 1])
        result[:, :3, 3] = self.origins
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ result


def rotation(a: float, b: float, c: float) -> np.ndarray:
    """(3, 3) turned about x, then y, then z, in radians."""
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def stack(
    axes: np.ndarray,
    depths: np.ndarray,
    *,
    origin: tuple[float, float, float] = (-30.5, 12.25, 101.0),
    spacing: tuple[float, float] = (0.75, 1.25),
    shape: tuple[int, int] = (12, 10),
    shift: tuple[float, float] = (0.0, 0.0),
) -> Geometry:
    """Planes at ``depths`` mm along the normal; ``shift`` mm along row and column for each mm of depth is a tilt."""
    normal = np.cross(axes[:, 0], axes[:, 1])
    step = normal + axes[:, :2] @ np.array(shift)
    return Geometry(axes[:, :2], np.array(origin) + np.outer(depths, step), spacing, shape)


def axial(depths: np.ndarray | None = None, **options: object) -> Geometry:
    return stack(np.eye(3), np.arange(6) * 2.5 if depths is None else depths, **options)  # type: ignore[arg-type]


def write(
    folder: Path, geometry: Geometry, modality: str = "CT", *, enhanced: bool = False, thickness: float = 2.5
) -> DicomSource:
    """The files of a series in ``folder``, every pixel of another value, and their provenance."""
    folder.mkdir(parents=True, exist_ok=True)
    make = _enhanced if enhanced else _classic
    return DicomSource(
        study_uid=f"{ROOT_UID}.1",
        series_uid=f"{ROOT_UID}.2",
        frame_of_reference_uid=f"{ROOT_UID}.3",
        modality=modality,
        units="HU" if modality == "CT" else "",
        transfer_syntaxes=(str(ExplicitVRLittleEndian),),
        frames=make(folder, geometry, modality, thickness),
    )


def volume(folder: Path, geometry: Geometry, modality: str = "CT", *, enhanced: bool = False) -> Volume:
    """A written series as a regular volume."""
    source = write(folder, geometry, modality, enhanced=enhanced)
    affines = geometry.affines_ras
    affine = affines[0].copy()
    affine[:3, 2] = (affines[-1, :3, 3] - affines[0, :3, 3]) / (len(affines) - 1)
    return Volume(_values(geometry), affine, {"dicom": source, "path": folder, "format": "DICOM"})


def planes(folder: Path, geometry: Geometry, modality: str = "CT", *, enhanced: bool = False) -> PlaneStack:
    """A written series as planes."""
    source = write(folder, geometry, modality, enhanced=enhanced)
    return PlaneStack(_values(geometry), geometry.affines_ras, {"dicom": source, "path": folder, "format": "DICOM"})


def landmarks(shape: tuple[int, ...], labels: int = 2, seed: int = 0) -> np.ndarray:
    """A label map without any symmetry: random blobs, every label on several planes, some planes empty."""
    rng = np.random.default_rng(seed)
    result = np.zeros(shape, np.uint8)
    for label in range(1, labels + 1):
        for _ in range(3):
            low = [int(rng.integers(0, size)) for size in shape]
            high = [int(min(size, start + rng.integers(1, 4))) for size, start in zip(shape, low, strict=True)]
            result[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = label
    result[tuple(int(rng.integers(0, size)) for size in shape)] = 1
    return result


def _values(geometry: Geometry) -> np.ndarray:
    x, y, n = *geometry.shape, len(geometry.origins)
    return np.arange(x * y * n, dtype=np.float32).reshape(n, y, x).transpose(2, 1, 0)


def _common(path: Path, sop_class: str, sop_uid: str, geometry: Geometry, modality: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, sop_uid
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, sop_uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (f"{ROOT_UID}.{n}" for n in (1, 2, 3))
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "made-1", "Made^Series", "19500101", "O"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "7", "A7", ""
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20240229"
    ds.StudyTime, ds.SeriesTime, ds.AcquisitionTime, ds.ContentTime = "101500", "101600", "101700", "101800.5"
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = modality, "Maker", "Scanner"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1.0"
    ds.SeriesNumber, ds.PositionReferenceIndicator = 3, ""
    ds.Columns, ds.Rows = geometry.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return ds


def _numbers(values: np.ndarray) -> list[str]:
    return [format_number_as_ds(float(value) + 0.0) for value in values]


def _classic(folder: Path, geometry: Geometry, modality: str, thickness: float) -> tuple[SourceFrame, ...]:
    values, frames = _values(geometry), []
    for k, origin in enumerate(geometry.origins):
        path = folder / f"{(k * 7) % 1000:03d}.dcm"
        ds = _common(path, CLASSES[modality, False], f"{ROOT_UID}.4.{k + 1}", geometry, modality)
        ds.InstanceNumber = len(geometry.origins) - k
        ds.ImagePositionPatient, ds.ImageOrientationPatient = _numbers(origin), _numbers(geometry.axes.T.ravel())
        ds.PixelSpacing, ds.SliceThickness = _numbers(np.array(geometry.spacing[::-1])), thickness
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        ds.PixelData = values[:, :, k].T.astype("<u2").tobytes()
        ds.save_as(path, enforce_file_format=True)
        frames.append(SourceFrame(path, ds.SOPClassUID, ds.SOPInstanceUID, None, _plane(geometry, k), thickness))
    return tuple(frames)


def _plane(geometry: Geometry, k: int) -> tuple[float, ...]:
    return tuple(map(float, (*geometry.origins[k], *geometry.axes.T.ravel(), *geometry.spacing[::-1])))


def _enhanced(folder: Path, geometry: Geometry, modality: str, thickness: float) -> tuple[SourceFrame, ...]:
    """Frames stored back to front, so that frame number and slice index differ."""
    path = folder / "enhanced"
    ds = _common(path, CLASSES[modality, True], f"{ROOT_UID}.4.1", geometry, modality)
    count = len(geometry.origins)
    ds.NumberOfFrames, ds.InstanceNumber = count, 1
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _numbers(np.array(geometry.spacing[::-1])), thickness
    orientation.ImageOrientationPatient = _numbers(geometry.axes.T.ravel())
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for origin in geometry.origins[::-1]:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = _numbers(origin)
        group.PlanePositionSequence = [position]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.PixelData = _values(geometry).transpose(2, 1, 0)[::-1].astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return tuple(
        SourceFrame(path, ds.SOPClassUID, ds.SOPInstanceUID, count - k, _plane(geometry, k), thickness)
        for k in range(count)
    )
