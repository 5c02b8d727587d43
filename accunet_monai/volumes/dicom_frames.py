"""DICOM objects → frames: one plane each with its place, its rescaling, and what may tell it from its neighbours.

Classic single-frame objects carry these at the top level; Enhanced (multi-frame) ones in the functional groups, the
frame's own before the shared (PS3.3 C.7.6.16); a Siemens mosaic or a UIH grid is cut into its tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom import uid

from accunet_monai.volumes.dicom_grids import Tile, tiles_of
from accunet_monai.volumes.dicom_header import Header, Values
from accunet_monai.volumes.dicom_pixels import Pixels, pixel_problem, pixels_of
from accunet_monai.volumes.dicom_source import SourceFrame

_CLASSIC = {
    str(uid.CTImageStorage): "CT",
    str(uid.MRImageStorage): "MR",
    str(uid.PositronEmissionTomographyImageStorage): "PT",
}
_MULTI_FRAME = {
    str(uid.EnhancedCTImageStorage): "CT",
    str(uid.LegacyConvertedEnhancedCTImageStorage): "CT",
    str(uid.EnhancedMRImageStorage): "MR",
    str(uid.EnhancedMRColorImageStorage): "MR",
    str(uid.LegacyConvertedEnhancedMRImageStorage): "MR",
    str(uid.EnhancedPETImageStorage): "PT",
    str(uid.LegacyConvertedEnhancedPETImageStorage): "PT",
}
_GROUPS = {  # attribute: functional groups that may hold it (PS3.3 C.7.6.16, A.36, A.38, A.56), in order
    "ImagePositionPatient": ("PlanePositionSequence",),
    "ImageOrientationPatient": ("PlaneOrientationSequence",),
    "PixelSpacing": ("PixelMeasuresSequence",),
    "SliceThickness": ("PixelMeasuresSequence",),
    "SpacingBetweenSlices": ("PixelMeasuresSequence",),
    "RescaleSlope": ("PixelValueTransformationSequence",),
    "RescaleIntercept": ("PixelValueTransformationSequence",),
    "RescaleType": ("PixelValueTransformationSequence",),
    "FrameType": ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"),
    "ComplexImageComponent": ("MRImageFrameTypeSequence",),
    "EffectiveEchoTime": ("MREchoSequence",),
    "DiffusionBValue": ("MRDiffusionSequence",),
    "DiffusionGradientOrientation": ("DiffusionGradientDirectionSequence",),
    "InversionTimes": ("MRModifierSequence",),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence",),
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence",),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence",),
    "StackID": ("FrameContentSequence",),
    "TemporalPositionIndex": ("FrameContentSequence",),
    "FrameAcquisitionNumber": ("FrameContentSequence",),
    "FrameReferenceDateTime": ("FrameContentSequence",),
    "FrameAcquisitionDateTime": ("FrameContentSequence",),
    "ConvolutionKernel": ("CTReconstructionSequence",),
}


@dataclass(frozen=True, slots=True)
class Instance:
    """One SOP instance, without what its frames tell. ``problem`` is (code, message) if it cannot be read."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    description: str
    number: int | None
    instance_number: int | None
    pixels: Pixels
    problem: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane of an instance; whatever the file does not say usably is None.

    Args:
        instance: the object it belongs to.
        index: of the stored frame, from 0.
        frame_number: from 1 in a multi-frame object, else None.
        tile: where in a mosaic's stored frame this plane lies, None if it is the whole frame.
        position: ImagePositionPatient, LPS mm of the first pixel's centre.
        orientation: ImageOrientationPatient, direction cosines along a row and along a column.
        spacing: PixelSpacing, mm between rows and between columns.
        thickness: SliceThickness in mm.
        slice_spacing: SpacingBetweenSlices in mm; often wrong, never used where positions tell.
        rescale: slope and intercept to modality units.
        units: of the rescaled values, as far as known.
        tags: what may tell this frame from others at the same place, as text.
    """

    instance: Instance
    index: int
    frame_number: int | None
    tile: Tile | None
    position: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    slice_spacing: float | None
    rescale: tuple[float, float] | None
    units: str
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Of this plane."""
        return self.tile.rows if self.tile else self.instance.pixels.rows

    @property
    def columns(self) -> int:
        """Of this plane."""
        return self.tile.columns if self.tile else self.instance.pixels.columns

    @property
    def source(self) -> SourceFrame:
        """Which image this is."""
        found, plane = self.instance, None
        if self.tile is None and self.position and self.orientation and self.spacing:
            plane = (*self.position, *self.orientation, *self.spacing)
        return SourceFrame(
            found.path, found.sop_class_uid, found.sop_instance_uid, self.frame_number, plane, self.thickness
        )

    @property
    def name(self) -> str:
        """For messages: SOPInstanceUID, else the file's name; with the frame number."""
        name = self.instance.sop_instance_uid or self.instance.path.name
        return name if self.frame_number is None else f"{name} frame {self.frame_number}"


def frames_of(header: Header) -> tuple[Frame, ...] | str:
    """The planes of an object, or why it is not an image of a volume."""
    kind = header.sop_class_uid
    modality = _MULTI_FRAME.get(kind) or _CLASSIC.get(kind)
    if not kind and header.values.text("Modality") in ("CT", "MR", "PT"):
        modality = header.values.text("Modality")
    if modality is None:
        return f"{uid.UID(kind).name if kind else 'an object without SOP class'}, not a CT, MR or PET image"
    pixels = pixels_of(header)
    if pixels is None:
        return "it has no rows and columns"
    instance = _instance(header, modality, pixels)
    if kind in _MULTI_FRAME:
        return _multi_frame(header.values, instance)
    if pixels.frames != 1:
        problem = ("GEOM_NO_POSITION", f"{pixels.frames} frames in a single-frame object have no places of their own")
        instance = replace(instance, problem=instance.problem or problem)
    frame = _classic_frame(header.values, instance)
    return tiles_of(header.values, frame)


def _instance(header: Header, modality: str, pixels: Pixels) -> Instance:
    values = header.values
    problem = pixel_problem(pixels, modality)
    if problem is None and values.items("ModalityLUTSequence"):
        problem = ("PIXEL_RESCALE", "values are mapped by a modality lookup table, expected slope and intercept")
    return Instance(
        path=header.path,
        sop_class_uid=header.sop_class_uid,
        sop_instance_uid=header.sop_instance_uid,
        study_uid=values.text("StudyInstanceUID"),
        series_uid=values.text("SeriesInstanceUID"),
        frame_of_reference_uid=values.text("FrameOfReferenceUID"),
        modality=modality,
        description=values.title("SeriesDescription"),
        number=values.whole("SeriesNumber"),
        instance_number=values.whole("InstanceNumber"),
        pixels=pixels,
        problem=problem,
    )


def _classic_frame(values: Values, instance: Instance) -> Frame:
    return Frame(
        instance=instance,
        index=0,
        frame_number=None,
        tile=None,
        position=values.numbers("ImagePositionPatient", 3),  # type: ignore[arg-type]
        orientation=values.numbers("ImageOrientationPatient", 6),
        spacing=values.numbers("PixelSpacing", 2),  # type: ignore[arg-type]
        thickness=values.number("SliceThickness"),
        slice_spacing=values.number("SpacingBetweenSlices"),
        rescale=_rescale(values, values, instance.modality),
        units=_units(values.text("RescaleType"), values.text("Units"), instance.modality),
        tags=_classic_tags(values),
    )


_CLASSIC_TAGS = (
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "FlipAngle",
    "RepetitionTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "NumberOfTemporalPositions",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "FrameReferenceTime",
    "AcquisitionNumber",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
    "ComplexImageComponent",
    "ConvolutionKernel",
    "KVP",
    "InstanceNumber",
)


def _classic_tags(values: Values) -> dict[str, str]:
    tags = {name: text for name in _CLASSIC_TAGS if (text := values.text(name))}
    if "DiffusionBValue" not in tags and (b_value := _private_b_value(values)):
        tags["DiffusionBValue"] = b_value
    if image_type := values.text("ImageType"):
        tags["ImageType"] = image_type
    for date, time in (("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime")):
        if time in tags:
            tags[time] = (values.text(date) + tags[time]) if values.text(date) else tags[time]
    return tags


def _private_b_value(values: Values) -> str:
    if values.text("SiemensCreator0019").startswith("SIEMENS MR"):
        return values.text("SiemensBValue")
    if values.text("GeCreator0043").startswith("GEMS_PARM"):
        first = next(iter(values.texts("GeBValue")), "")
        return str(int(first) % 1_000_000_000) if first.isdigit() else ""  # GE adds 1e9 as a mark
    if values.text("UihCreator0065").startswith("Image Private Header"):
        return values.text("UihBValue")
    return ""


def _multi_frame(values: Values, instance: Instance) -> tuple[Frame, ...]:
    """The frames by their functional groups; without groups one nowhere, so that the series can say what is missing."""
    shared = values.item("SharedFunctionalGroupsSequence")
    own = values.items("PerFrameFunctionalGroupsSequence")
    if len(own) != instance.pixels.frames and instance.problem is None:
        found = f"{len(own)} frames have functional groups, {instance.pixels.frames} are declared"
        instance = replace(instance, problem=("GEOM_NO_POSITION", found))
    return tuple(
        _frame_of_groups(_Groups(group, shared), values, instance, index)
        for index, group in enumerate(own[: instance.pixels.frames] or (Values({}),))
    )


class _Groups:
    """Attributes of one frame: looked up in its own functional groups, then in the shared ones."""

    def __init__(self, own: Values, shared: Values) -> None:
        self._levels = (own, shared)

    def of(self, name: str) -> Values:
        """The macro that holds the attribute, or one without elements."""
        for level in self._levels:
            for sequence in _GROUPS[name]:
                macro = level.item(sequence)
                if name == "DiffusionGradientOrientation":
                    macro = level.item("MRDiffusionSequence").item(sequence)
                if name in macro:
                    return macro
        return Values({})

    def text(self, name: str) -> str:
        return self.of(name).text(name)


_GROUP_TAGS = (
    "EffectiveEchoTime",
    "InversionTimes",
    "FlipAngle",
    "RepetitionTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "StackID",
    "TemporalPositionIndex",
    "NominalCardiacTriggerDelayTime",
    "FrameAcquisitionNumber",
    "FrameReferenceDateTime",
    "FrameAcquisitionDateTime",
    "ComplexImageComponent",
    "ConvolutionKernel",
)


def _frame_of_groups(groups: _Groups, top: Values, instance: Instance, index: int) -> Frame:
    tags = {name: text for name in _CLASSIC_TAGS if (text := top.text(name))}
    tags |= {name: text for name in _GROUP_TAGS if (text := groups.text(name))}
    if image_type := groups.text("FrameType") or top.text("ImageType"):
        tags["ImageType"] = image_type
    slope = groups.of("RescaleSlope")
    intercept = groups.of("RescaleIntercept")
    return Frame(
        instance=instance,
        index=index,
        frame_number=index + 1,
        tile=None,
        position=groups.of("ImagePositionPatient").numbers("ImagePositionPatient", 3),  # type: ignore[arg-type]
        orientation=groups.of("ImageOrientationPatient").numbers("ImageOrientationPatient", 6),
        spacing=groups.of("PixelSpacing").numbers("PixelSpacing", 2),  # type: ignore[arg-type]
        thickness=groups.of("SliceThickness").number("SliceThickness"),
        slice_spacing=groups.of("SpacingBetweenSlices").number("SpacingBetweenSlices"),
        rescale=_rescale(slope, intercept, instance.modality),
        units=_units(groups.text("RescaleType"), top.text("Units"), instance.modality),
        tags=tags,
    )


def _rescale(slopes: Values, intercepts: Values, modality: str) -> tuple[float, float] | None:
    """Slope and intercept. Both absent is the identity for MR alone: for CT and PET they are required (Type 1)."""
    if "RescaleSlope" not in slopes and "RescaleIntercept" not in intercepts:
        return (1.0, 0.0) if modality == "MR" else None
    slope, intercept = slopes.number("RescaleSlope"), intercepts.number("RescaleIntercept")
    return None if slope is None or intercept is None or slope == 0 else (slope, intercept)


def _units(rescale_type: str, units: str, modality: str) -> str:
    if modality == "CT":
        return rescale_type if rescale_type not in ("", "US") else "HU"
    return units or (rescale_type if rescale_type not in ("US", "normalized") else "")
