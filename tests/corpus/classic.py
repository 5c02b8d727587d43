"""Classic DICOM: one file a slice. CT, MR and PET image objects that dciodvfy finds no error in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage
from pydicom.valuerep import format_number_as_ds

from tests.corpus.encoding import uid
from tests.corpus.phantom import Stack

SOP_CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
}
DATE, TIME = "20200102", "030405"


def classic(
    stack: Stack,
    modality: str = "CT",
    *,
    series: str = "series",
    study: str = "study",
    frame_of_reference: str = "frame of reference",
    slope: float | Sequence[float] = 1.0,
    intercept: float | None = None,
    signed: bool = False,
    bits: int | None = None,
    first: int = 1,
) -> list[Dataset]:
    """One dataset for each plane, in the stack's order.

    Args:
        stack: the truth; its values must be stored·slope + intercept for whole stored numbers.
        modality: CT, MR or PT.
        series, study, frame_of_reference: words that the UIDs are made of.
        slope: of all slices, or one for each. None of MR when it is 1.
        intercept: -1024 for CT and 0 for the others unless given.
        signed, bits: PixelRepresentation and BitsStored (16 for PET, else 12, unless given).
        first: InstanceNumber of the first slice.
    """
    intercept = intercept if intercept is not None else -1024.0 if modality == "CT" else 0.0
    bits = bits or (16 if modality == "PT" else 12)
    slopes = np.broadcast_to(np.asarray(slope, float), len(stack.values))
    datasets = []
    for k, values in enumerate(stack.values):
        ds = patient(study)
        _add_series(ds, modality, series, frame_of_reference)
        ds.SOPClassUID = SOP_CLASSES[modality]
        ds.SOPInstanceUID = uid(study, series, first + k)
        ds.InstanceNumber = first + k
        _add_plane(ds, stack, k)
        add_pixels(ds, (np.nan_to_num(values, nan=intercept) - intercept) / slopes[k], signed=signed, bits=bits)
        if modality != "MR" or slopes[k] != 1 or intercept != 0:
            ds.RescaleSlope, ds.RescaleIntercept = decimal(slopes[k]), decimal(intercept)
        ADD_MODALITY[modality](ds, k, len(stack.values))
        datasets.append(ds)
    return datasets


def patient(study: str = "study") -> Dataset:
    """Patient and study, shared by every object of the corpus."""
    ds = Dataset()
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom^Made", "CORPUS", "19700101", "O"
    ds.StudyInstanceUID = uid(study)
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = DATE
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = TIME
    ds.ReferringPhysicianName = ds.AccessionNumber = ""
    ds.StudyID = "1"
    ds.Manufacturer = "accunet-monai"
    return ds


def add_pixels(ds: Dataset, stored: np.ndarray, *, signed: bool = False, bits: int = 12) -> None:
    """Image Pixel module of one frame (rows, columns) or several; 8 bits allocated where ``bits`` is 8, else 16."""
    whole = np.rint(stored).astype(np.int64)
    if np.abs(whole - stored).max() > 1e-6:
        raise ValueError("the phantom's values are not whole stored numbers")
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if whole.min() < lowest or whole.max() > highest:
        raise ValueError(f"the phantom's values do not fit into {bits} bits")
    allocated = 8 if bits == 8 else 16
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = whole.shape[-2:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = allocated, bits, bits - 1
    ds.PixelRepresentation = int(signed)
    ds.PixelData = whole.astype(f"<{'i' if signed else 'u'}{allocated // 8}").tobytes()
    ds["PixelData"].VR = "OB" if allocated == 8 else "OW"


def decimal(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return format_number_as_ds(float(value) + 0.0)


def decimals(values: Sequence[float] | np.ndarray) -> list[str]:
    """Decimal strings of a vector."""
    return [decimal(value) for value in values]


def _add_series(ds: Dataset, modality: str, series: str, frame_of_reference: str) -> None:
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber = modality, uid(series), 1
    ds.SeriesDescription = series.upper()
    ds.BodyPartExamined, ds.PatientPosition = "ABDOMEN", "HFS"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(frame_of_reference), ""


def _add_plane(ds: Dataset, stack: Stack, k: int) -> None:
    ds.ImagePositionPatient = decimals(stack.positions[k])
    ds.ImageOrientationPatient = decimals([*stack.row, *stack.column])
    ds.PixelSpacing = decimals(stack.spacing)
    ds.SliceThickness = decimal(abs(float(stack.step @ stack.normal)) if len(stack.values) > 1 else 2.5)
    ds.SliceLocation = decimal(round(float(stack.positions[k] @ stack.normal), 6))


def _add_ct(ds: Dataset, k: int, slices: int) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.KVP, ds.AcquisitionNumber, ds.RescaleType = "120", 1, "HU"


def _add_mr(ds: Dataset, k: int, slices: int) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "NONE", "", "2D"
    ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = "800", "20", 1
    if "RescaleSlope" in ds:
        ds.RescaleType = "US"


def _add_pet(ds: Dataset, k: int, slices: int) -> None:
    del ds.PatientPosition
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.Units, ds.CountsSource, ds.SeriesType = "BQML", "EMISSION", ["STATIC", "IMAGE"]
    ds.NumberOfSlices, ds.ImageIndex = slices, k + 1
    ds.CorrectedImage, ds.DecayCorrection, ds.CollimatorType = ["DECY", "ATTN"], "START", "NONE"
    ds.FrameReferenceTime, ds.ActualFrameDuration, ds.DecayFactor = "0", "60000", "1"
    drug = Dataset()
    drug.RadionuclideCodeSequence = Items([code("77004003", "SCT", "^18^Fluorine")])
    drug.RadiopharmaceuticalCodeSequence = Items([code("35321007", "SCT", "Fluorodeoxyglucose F^18^")])
    ds.RadiopharmaceuticalInformationSequence = Items([drug])
    ds.PatientOrientationCodeSequence = Items([code("102538003", "SCT", "recumbent")])
    ds.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = Items(
        [code("40199007", "SCT", "supine")]
    )
    ds.PatientGantryRelationshipCodeSequence = Items([code("102540001", "SCT", "headfirst")])


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One coded concept."""
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds


ADD_MODALITY = {"CT": _add_ct, "MR": _add_mr, "PT": _add_pet}
