"""Enhanced DICOM: one multi-frame object for many slices, and Siemens and UIH images that hold a tiled volume."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
)

from tests.corpus.classic import add_pixels, classic, code, decimal, decimals, patient
from tests.corpus.encoding import uid
from tests.corpus.phantom import Stack, phantom

SOP_CLASSES = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage, "PT": EnhancedPETImageStorage}
LEGACY_CLASSES = {"CT": LegacyConvertedEnhancedCTImageStorage, "MR": LegacyConvertedEnhancedMRImageStorage}
DATE_TIME = "20200102030405"

Mark = Callable[[Dataset, int], None]
"""Adds to the functional groups of a frame what tells its stack (by index) from the others."""


def enhanced(
    stacks: Stack | Sequence[Stack],
    modality: str = "MR",
    *,
    series: str = "series",
    study: str = "study",
    instance: int = 1,
    slope: float | Sequence[float] = 1.0,
    intercept: float | None = None,
    mark: Mark | None = None,
    dimension: str | None = None,
    one_stack: bool = True,
    signed: bool = False,
) -> Dataset:
    """One object with the planes of all stacks, each stack whole before the next.

    Args:
        stacks: the truth; all planes of one size.
        modality: CT, MR or PT.
        series, study, instance: what the UIDs are made of.
        slope: of all frames, or one for each.
        intercept: -1024 for CT and 0 for the others unless given.
        mark: called for each frame's functional groups with the index of its stack.
        dimension: keyword of the attribute that ``mark`` sets, for the Multi-frame Dimension module.
        one_stack: the stacks lie at the same places (they differ in time or the like) and share a StackID.
        signed: PixelRepresentation.
    """
    stacks = [stacks] if isinstance(stacks, Stack) else list(stacks)
    intercept = intercept if intercept is not None else -1024.0 if modality == "CT" else 0.0
    ds = patient(study)
    _add_series(ds, modality, series)
    ds.SOPClassUID, ds.SOPInstanceUID = SOP_CLASSES[modality], uid(study, series, "enhanced", instance)
    ds.InstanceNumber = instance
    values = np.concatenate([stack.values for stack in stacks])
    slopes = np.broadcast_to(np.asarray(slope, float), len(values))
    add_pixels(ds, (values - intercept) / slopes[:, None, None], signed=signed, bits=16 if modality == "PT" else 12)
    ds.NumberOfFrames = len(values)
    _add_dimensions(ds, dimension)
    ds.SharedFunctionalGroupsSequence = Items([_shared_groups(stacks[0], modality)])
    groups = []
    for s, stack in enumerate(stacks):
        for k in range(len(stack.values)):
            group = _frame_groups(stack, k, "1" if one_stack else str(s + 1), s + 1 if dimension else None, modality)
            group.PixelValueTransformationSequence = Items([_rescale(slopes[len(groups)], intercept, modality)])
            if mark:
                mark(group, s)
            groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Items(groups)
    return ds


def legacy(stack: Stack, modality: str = "CT") -> Dataset:
    """A classic series as a Legacy Converted Enhanced object (PS3.3 A.70, A.71)."""
    ds = enhanced(stack, modality)
    ds.SOPClassUID = LEGACY_CLASSES[modality]
    sources = classic(stack, modality)
    for group, source in zip(ds.PerFrameFunctionalGroupsSequence, sources, strict=True):
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        group.ConversionSourceAttributesSequence = Items([reference])
        unassigned = Dataset()
        unassigned.SliceLocation = source.SliceLocation
        group.UnassignedPerFrameConvertedAttributesSequence = Items([unassigned])
    return ds


def reordered(ds: Dataset, order: Iterable[int]) -> Dataset:
    """The same frames in another order, in place: pixels and functional groups together."""
    order = list(order)
    size = len(ds.PixelData) // int(ds.NumberOfFrames)
    ds.PixelData = b"".join(ds.PixelData[n * size : (n + 1) * size] for n in order)
    ds.PerFrameFunctionalGroupsSequence = Items([ds.PerFrameFunctionalGroupsSequence[n] for n in order])
    ds.NumberOfFrames = len(order)
    return ds


def mosaic(stack: Stack, *, normal_known: bool = True, instance: int = 1, tiles: int = 3) -> Dataset:
    """A Siemens mosaic: the planes as tiles of one MR image, in rows of ``tiles``, with a CSA header (format 2).

    ImagePositionPatient is that of a hypothetical plane of the whole mosaic's size around the first slice's centre.
    """
    count, rows, columns = stack.values.shape
    ds = classic(_tiled(stack, tiles), "MR", first=instance)[0]
    ds.Manufacturer = "SIEMENS"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    corner = stack.positions[0] - (
        stack.row * stack.spacing[1] * (tiles - 1) * columns / 2
        + stack.column * stack.spacing[0] * (tiles - 1) * rows / 2
    )
    ds.ImagePositionPatient = decimals(corner)
    ds.SliceThickness = ds.SpacingBetweenSlices = decimal(float(np.linalg.norm(stack.step)))
    ds.SequenceName = "epfid2d1_16"
    private = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    private.add_new(0x0A, "US", count)
    if normal_known:
        csa = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        csa.add_new(0x08, "CS", "IMAGE NUM 4")
        csa.add_new(0x09, "LO", "20200102")
        direction = stack.step / np.linalg.norm(stack.step)
        fields = [
            ("NumberOfImagesInMosaic", "US", [str(count)]),
            ("SliceNormalVector", "FD", _csa_reals(direction)),
            ("AcquisitionMatrixText", "SH", [f"{rows}*{columns}"]),
        ]
        csa.add_new(0x10, "OB", _csa_header(fields))
    return ds


def vframe(stack: Stack, *, instance: int = 1, tiles: int = 3) -> Dataset:
    """A UIH grid image: tiles as in a mosaic, with each slice's geometry in the private MRVFrameSequence."""
    ds = classic(_tiled(stack, tiles), "MR", first=instance)[0]
    ds.Manufacturer = "UIH"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "VFRAME"]
    ds.ImagePositionPatient = decimals(stack.positions[0])
    ds.SliceThickness = ds.SpacingBetweenSlices = decimal(float(np.linalg.norm(stack.step)))
    items = []
    for k, position in enumerate(stack.positions):
        item = Dataset()
        item.ImagePositionPatient = decimals(position)
        item.ImageOrientationPatient = decimals([*stack.row, *stack.column])
        item.InstanceNumber = k + 1
        items.append(item)
    private = ds.private_block(0x0065, "Image Private Header", create=True)
    private.add_new(0x50, "DS", str(len(stack.values)))
    private.add_new(0x51, "SQ", Items(items))
    return ds


def _tiled(stack: Stack, tiles: int) -> Stack:
    count, rows, columns = stack.values.shape
    grid = np.zeros((tiles * rows, tiles * columns))
    for k in range(count):
        down, along = divmod(k, tiles)
        grid[down * rows : (down + 1) * rows, along * columns : (along + 1) * columns] = stack.values[k]
    return replace(stack, values=grid[None], positions=stack.positions[:1])


def _csa_reals(vector: np.ndarray) -> list[str]:
    return [f"{value + 0.0:.14f}" for value in vector]


def _csa_header(fields: Sequence[tuple[str, str, Sequence[str]]]) -> bytes:
    """The undocumented but well known second form: SV10, then named fields with items padded to four bytes."""
    content = b"SV10\x04\x03\x02\x01" + struct.pack("<II", len(fields), 77)
    for name, vr, items in fields:
        content += struct.pack("<64si4siii", name.encode(), len(items), vr.encode(), 0, 6, 77)
        for n in range(6):
            text = items[n].encode() + b"\0" if n < len(items) else b""
            content += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return content


def _add_series(ds: Dataset, modality: str, series: str) -> None:
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber = modality, uid(series), 1
    ds.SeriesDescription, ds.BodyPartExamined = series.upper(), "ABDOMEN"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid("frame of reference"), ""
    ds.ManufacturerModelName, ds.DeviceSerialNumber, ds.SoftwareVersions = "made", "1", "1"
    ds.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    ds.PixelPresentation, ds.VolumetricProperties = "MONOCHROME", "VOLUME"
    ds.VolumeBasedCalculationTechnique, ds.PresentationLUTShape = "NONE", "IDENTITY"
    ds.AcquisitionNumber, ds.AcquisitionDateTime, ds.AcquisitionDuration = 1, DATE_TIME, 60.0
    ds.ContentQualification, ds.BurnedInAnnotation, ds.LossyImageCompression = "RESEARCH", "NO", "00"
    ds.AcquisitionContextSequence = Items([])
    del ds.AcquisitionDate, ds.AcquisitionTime
    if modality == "MR":
        ds.PatientPosition = "HFS"
        ds.ComplexImageComponent, ds.AcquisitionContrast = "MAGNITUDE", "PROTON_DENSITY"
        ds.ResonantNucleus, ds.MagneticFieldStrength, ds.KSpaceFiltering = "1H", 3.0, "NONE"
        ds.ApplicableSafetyStandardAgency = "IEC"
    elif modality == "CT":
        ds.PatientPosition = "HFS"
    else:
        _add_pet(ds)


def _add_pet(ds: Dataset) -> None:
    ds.RadiopharmaceuticalInformationSequence = classic(phantom(slices=1, lowest=0), "PT")[
        0
    ].RadiopharmaceuticalInformationSequence
    drug = ds.RadiopharmaceuticalInformationSequence[0]
    drug.RadiopharmaceuticalAgentNumber = 1
    drug.AdministrationRouteCodeSequence = Items([code("47625008", "SCT", "Intravenous route")])
    drug.RadiopharmaceuticalStartDateTime, drug.RadionuclideTotalDose = DATE_TIME, "300"
    drug.RadionuclideHalfLife, drug.RadionuclidePositronFraction = "6586.2", "0.97"
    for corrected in _PET_CORRECTIONS:
        setattr(ds, corrected, "NO")
    ds.CountsSource, ds.TableMotion, ds.TimeOfFlightInformationUsed = "EMISSION", "STATIC", "FALSE"
    ds.ViewCodeSequence = Items([code("62824007", "SCT", "Transverse")])
    ds.SliceProgressionDirection = "BASE_TO_APEX"


_PET_CORRECTIONS = (
    *("DecayCorrected", "AttenuationCorrected", "ScatterCorrected", "DeadTimeCorrected", "GantryMotionCorrected"),
    *("PatientMotionCorrected", "CountLossNormalizationCorrected", "RandomsCorrected", "SensitivityCalibrated"),
    *("NonUniformRadialSamplingCorrected", "DetectorNormalizationCorrection"),
)


def _add_dimensions(ds: Dataset, dimension: str | None) -> None:
    organization = Dataset()
    organization.DimensionOrganizationUID = uid("dimensions")
    ds.DimensionOrganizationSequence = Items([organization])
    content = "FrameContentSequence"
    pointers = [("StackID", content), ("InStackPositionNumber", content)]
    if dimension:
        pointers.append((dimension, _GROUP_OF.get(dimension, content)))
    items = []
    for keyword, group in pointers:
        item = Dataset()
        item.DimensionOrganizationUID = uid("dimensions")
        item.DimensionIndexPointer, item.FunctionalGroupPointer = Tag(keyword), Tag(group)
        items.append(item)
    ds.DimensionIndexSequence = Items(items)


_GROUP_OF = {
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "ComplexImageComponent": "MRImageFrameTypeSequence",
}


def _shared_groups(stack: Stack, modality: str) -> Dataset:
    shared = Dataset()
    measures = Dataset()
    measures.PixelSpacing = decimals(stack.spacing)
    measures.SliceThickness = decimal(abs(float(stack.step @ stack.normal)) if len(stack.values) > 1 else 2.5)
    shared.PixelMeasuresSequence = Items([measures])
    anatomy = Dataset()
    anatomy.AnatomicRegionSequence = Items([code("113345001", "SCT", "Abdomen")])
    anatomy.FrameLaterality = "U"
    shared.FrameAnatomySequence = Items([anatomy])
    if modality == "CT":
        event = Dataset()
        event.IrradiationEventUID = uid("irradiation")
        shared.IrradiationEventIdentificationSequence = Items([event])
    elif modality == "PT":
        usage = Dataset()
        usage.RadiopharmaceuticalAgentNumber = 1
        shared.RadiopharmaceuticalUsageSequence = Items([usage])
    return shared


def _frame_groups(stack: Stack, k: int, stack_id: str, third: int | None, modality: str) -> Dataset:
    group, content, position, orientation, window = (Dataset() for _ in range(5))
    content.StackID, content.InStackPositionNumber = stack_id, k + 1
    content.DimensionIndexValues = [int(stack_id), k + 1] + ([third] if third else [])
    content.FrameAcquisitionDateTime = content.FrameReferenceDateTime = DATE_TIME
    content.FrameAcquisitionDuration = 60.0
    if modality == "PT":
        content.TemporalPositionIndex = 1
    group.FrameContentSequence = Items([content])
    position.ImagePositionPatient = decimals(stack.positions[k])
    group.PlanePositionSequence = Items([position])
    orientation.ImageOrientationPatient = decimals([*stack.row, *stack.column])
    group.PlaneOrientationSequence = Items([orientation])
    window.WindowCenter, window.WindowWidth = "1000", "2000"
    group.FrameVOILUTSequence = Items([window])
    frame_type = Dataset()
    frame_type.FrameType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    frame_type.PixelPresentation, frame_type.VolumetricProperties = "MONOCHROME", "VOLUME"
    frame_type.VolumeBasedCalculationTechnique = "NONE"
    if modality == "MR":
        frame_type.ComplexImageComponent, frame_type.AcquisitionContrast = "MAGNITUDE", "PROTON_DENSITY"
    name = {"CT": "CTImageFrameTypeSequence", "MR": "MRImageFrameTypeSequence", "PT": "PETFrameTypeSequence"}[modality]
    setattr(group, name, Items([frame_type]))
    return group


def _rescale(slope: float, intercept: float, modality: str) -> Dataset:
    rescale = Dataset()
    rescale.RescaleIntercept, rescale.RescaleSlope = decimal(intercept), decimal(slope)
    rescale.RescaleType = {"CT": "HU", "MR": "US", "PT": "US"}[modality]
    return rescale
