"""Traps that only multi-frame objects can lay."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    XRayAngiographicImageStorage,
)

from tests.corpus.classic import classic
from tests.corpus.encoding import change, named, to_bytes, uid
from tests.corpus.enhanced import enhanced, legacy, reordered
from tests.corpus.file_traps import SHUFFLED
from tests.corpus.phantom import Stack, phantom
from tests.corpus.trap import EVERY, Case, Made, trap

MULTI = {"forms": ("enhanced",)}


def _file(ds: Dataset, *truth: Stack) -> Made:
    return Made({"enhanced.dcm": to_bytes(ds)}, truth)


@trap("Enhanced CT.", orientations=EVERY, valid=True, **MULTI)
def enhanced_CT(case: Case) -> Made:  # noqa: N802
    stack = phantom(case.orientation)
    return _file(enhanced(stack, "CT"), stack)


@trap("Enhanced PET.", valid=True, **MULTI)
def enhanced_PET(case: Case) -> Made:  # noqa: N802
    stack = case.phantom()
    return _file(enhanced(stack, "PT"), stack)


@trap("Legacy Converted Enhanced CT.", valid=True, **MULTI)
def legacy_converted_CT(case: Case) -> Made:  # noqa: N802
    stack = phantom(case.orientation)
    return _file(legacy(stack, "CT"), stack)


@trap("Legacy Converted Enhanced MR.", valid=True, **MULTI)
def legacy_converted_MR(case: Case) -> Made:  # noqa: N802
    stack = case.phantom()
    return _file(legacy(stack, "MR"), stack)


@trap("Frames lie in the file in random order.", orientations=EVERY, valid=True, **MULTI)
def frames_in_random_order(case: Case) -> Made:
    stack = case.phantom()
    return _file(reordered(enhanced(stack), SHUFFLED), stack)


@trap("Frames run against the normal.", **MULTI)
def frames_reversed(case: Case) -> Made:
    stack = case.phantom()
    return _file(reordered(enhanced(stack), range(7, -1, -1)), stack)


@trap("Frames in random order with a slope of their own: a slope must stay with its frame.", valid=True, **MULTI)
def frames_in_random_order_with_slopes(case: Case) -> Made:
    slopes = [0.731, 1.913, 0.27, 3.14159, 1.0, 2.5, 0.0625, 1.75]
    base = case.phantom()
    truth = base.with_values(base.values * np.array(slopes)[:, None, None])
    return _file(reordered(enhanced(truth, slope=slopes), SHUFFLED), truth)


@trap("InStackPositionNumber and DimensionIndexValues run against the positions.", **MULTI)
def dimension_indices_lie(case: Case) -> Made:
    stack = case.phantom()
    ds = enhanced(stack)
    for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        content = group.FrameContentSequence[0]
        content.InStackPositionNumber = 8 - k
        content.DimensionIndexValues = [1, 8 - k]
    return _file(ds, stack)


@trap("No dimension indices at all: the positions are enough.", **MULTI)
def no_dimensions(case: Case) -> Made:
    stack = case.phantom()
    ds = change(enhanced(stack), DimensionIndexSequence=None, DimensionOrganizationSequence=None)
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.FrameContentSequence
    return _file(ds, stack)


@trap("Position, orientation and measures are all per frame.", **MULTI)
def everything_per_frame(case: Case) -> Made:
    stack = case.phantom()
    return _file(_with_measures_per_frame(enhanced(stack)), stack)


@trap("Orientation and rescale are shared.", **MULTI)
def orientation_shared(case: Case) -> Made:
    stack = case.phantom()
    ds = enhanced(stack)
    shared, frames = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence
    for keyword in ("PlaneOrientationSequence", "PixelValueTransformationSequence"):
        setattr(shared, keyword, Items([deepcopy(getattr(frames[0], keyword)[0])]))
        for group in frames:
            delattr(group, keyword)
    return _file(ds, stack)


@trap(
    "Two different PixelSpacings in one object.",
    *("GEOM_SHAPE", "GEOM_SPACING", "GEOM_NO_SPACING", "GEOM_NONUNIFORM", "SERIES_AMBIGUOUS"),
    **MULTI,
)
def frames_of_two_pixel_spacings(case: Case) -> Made:
    stack = case.phantom()
    lower, upper = stack.take(range(4)), replace(stack.take(range(4, 8)), spacing=(0.9, 0.7))
    ds = _with_measures_per_frame(enhanced(stack))
    for group in ds.PerFrameFunctionalGroupsSequence[4:]:
        group.PixelMeasuresSequence[0].PixelSpacing = ["0.9", "0.7"]
    return _file(ds, lower, upper)


@trap("No Pixel Measures.", "GEOM_NO_SPACING", **MULTI)
def no_pixel_measures(case: Case) -> Made:
    ds = enhanced(case.phantom())
    del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    return _file(ds)


@trap("One frame has no Plane Position.", "GEOM_NO_POSITION", **MULTI)
def one_frame_without_position(case: Case) -> Made:
    ds = enhanced(case.phantom())
    del ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    return _file(ds)


@trap("No frame has a Plane Position.", "GEOM_NO_POSITION", **MULTI)
def no_frame_has_a_position(case: Case) -> Made:
    ds = enhanced(case.phantom())
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    return _file(ds)


@trap("One frame has an empty Plane Position sequence.", "GEOM_NO_POSITION", **MULTI)
def one_frame_with_empty_position(case: Case) -> Made:
    ds = enhanced(case.phantom())
    ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence = Items([])
    return _file(ds)


@trap("No frame has a Plane Orientation.", "GEOM_NO_ORIENTATION", **MULTI)
def no_frame_has_an_orientation(case: Case) -> Made:
    ds = enhanced(case.phantom())
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.PlaneOrientationSequence
    return _file(ds)


@trap("No functional groups at all.", "GEOM_NO_POSITION", "GEOM_NO_ORIENTATION", "GEOM_NO_SPACING", **MULTI)
def no_functional_groups(case: Case) -> Made:
    ds = enhanced(case.phantom())
    del ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence
    return _file(ds)


@trap(
    "The classic attributes stand at the top as well and contradict the functional groups, which are what counts.",
    **MULTI,
)
def classic_geometry_at_the_top(case: Case) -> Made:
    stack = phantom("oblique", lowest=0)
    ds = enhanced(stack)
    ds.ImagePositionPatient, ds.ImageOrientationPatient = ["0", "0", "0"], ["1", "0", "0", "0", "1", "0"]
    ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = ["1", "1"], "1", "9"
    return _file(ds, stack)


@trap(
    "A RescaleSlope at the top contradicts the frames' own. The frames' own counts; a refusal is right as well.",
    "PIXEL_RESCALE",
    or_right=True,
    **MULTI,
)
def rescale_at_the_top(case: Case) -> Made:
    stack = case.phantom()
    return _file(change(enhanced(stack), RescaleSlope="2", RescaleIntercept="-7"), stack)


@trap("Enhanced CT without Pixel Value Transformation.", "PIXEL_RESCALE", **MULTI)
def enhanced_CT_without_rescale(case: Case) -> Made:  # noqa: N802
    ds = enhanced(phantom(), "CT")
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    return _file(ds)


@trap("One frame of an enhanced CT lacks its Pixel Value Transformation.", "PIXEL_RESCALE", **MULTI)
def one_frame_without_rescale(case: Case) -> Made:
    ds = enhanced(phantom(), "CT")
    del ds.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence
    return _file(ds)


@trap("One frame's slope is 0.", "PIXEL_RESCALE", **MULTI)
def one_frame_with_slope_zero(case: Case) -> Made:
    ds = enhanced(case.phantom())
    ds.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence[0].RescaleSlope = "0"
    return _file(ds)


@trap("There are more frames than functional groups.", *("PIXEL_SIZE", "GEOM_NO_POSITION", "DICOM_UNREADABLE"), **MULTI)
def fewer_groups_than_frames(case: Case) -> Made:
    ds = enhanced(case.phantom())
    ds.PerFrameFunctionalGroupsSequence = Items(list(ds.PerFrameFunctionalGroupsSequence[:6]))
    return _file(ds)


@trap(
    "There are fewer frames than functional groups and pixels.",
    *("PIXEL_SIZE", "GEOM_NO_POSITION", "DICOM_UNREADABLE", "PIXEL_TRUNCATED"),
    **MULTI,
)
def more_groups_than_frames(case: Case) -> Made:
    return _file(change(enhanced(case.phantom()), NumberOfFrames=6))


@trap(
    "More frames are declared than there are pixels and groups.",
    "PIXEL_TRUNCATED",
    "PIXEL_SIZE",
    "GEOM_NO_POSITION",
    **MULTI,
)
def too_many_frames_declared(case: Case) -> Made:
    return _file(change(enhanced(case.phantom()), NumberOfFrames=12))


@trap(
    "No NumberOfFrames, of eight frames.",
    *("PIXEL_SIZE", "PIXEL_TRUNCATED", "GEOM_NO_POSITION", "DICOM_UNREADABLE"),
    or_right=True,
    **MULTI,
)
def no_number_of_frames(case: Case) -> Made:
    stack = case.phantom()
    return _file(change(enhanced(stack), NumberOfFrames=None), stack)


@trap(
    "Two stacks in the same orientation, far apart, as of two discs.",
    "GEOM_NONUNIFORM",
    "GEOM_MISSING_SLICE",
    or_right=True,
    **MULTI,
)
def two_stacks_apart(case: Case) -> Made:
    first, second = phantom(lowest=0, slices=4), phantom(lowest=0, slices=4, seed=1).moved([0, 0, 61.3])
    return _file(enhanced([first, second], one_stack=False), first, second)


@trap("Two stacks in two slightly different orientations, as of two discs.", **MULTI)
def two_stacks_of_two_orientations(case: Case) -> Made:
    first = phantom(lowest=0, slices=4)
    second = phantom("oblique", lowest=0, slices=4, seed=1).moved([0, 12, 61.3])
    return _file(enhanced([first, second], one_stack=False), first, second)


@trap(
    "Two enhanced objects hold the halves of one stack. They belong together; a refusal is right as well.",
    "SERIES_AMBIGUOUS",
    or_right=True,
    **MULTI,
)
def concatenation(case: Case) -> Made:
    whole = case.phantom()
    objects = [enhanced(whole.take(range(4))), enhanced(whole.take(range(4, 8)), instance=2)]
    for n, ds in enumerate(objects):
        ds.ConcatenationUID, ds.SOPInstanceUIDOfConcatenationSource = uid("concatenation"), uid("source")
        ds.InConcatenationNumber, ds.InConcatenationTotalNumber, ds.ConcatenationFrameOffsetNumber = n + 1, 2, 4 * n
    return Made(named([to_bytes(ds) for ds in objects]), (whole,))


@trap("Two enhanced objects of one series, each a whole volume at the same place (two time points).", **MULTI)
def two_objects_of_one_series(case: Case) -> Made:
    first, second = case.phantom(), case.phantom(seed=1)
    objects = [enhanced(first), enhanced(second, instance=2)]
    objects[1].AcquisitionNumber, objects[1].AcquisitionDateTime = 2, "20200102030505"
    return Made(named([to_bytes(ds) for ds in objects]), (first, second))


@trap("A frame is there twice, at the same place with other pixels.", "GEOM_DUPLICATE", **MULTI)
def duplicate_frame(case: Case) -> Made:
    stack = case.phantom()
    other = case.phantom(seed=1)
    return _file(enhanced([stack, other.take([3])]))


@trap(
    "An angiography: frames in time, no place in the patient.",
    "SERIES_NOT_IMAGE",
    "GEOM_NO_POSITION",
    "GEOM_NO_ORIENTATION",
    "SERIES_NONE",
    **MULTI,
)
def angiography(case: Case) -> Made:
    return _file(_plain_multiframe(XRayAngiographicImageStorage, "XA"))


@trap(
    "A multi-frame secondary capture.",
    "SERIES_NOT_IMAGE",
    "GEOM_NO_POSITION",
    "GEOM_NO_ORIENTATION",
    "SERIES_NONE",
    **MULTI,
)
def multiframe_secondary_capture(case: Case) -> Made:
    return _file(_plain_multiframe(MultiFrameGrayscaleWordSecondaryCaptureImageStorage, "OT"))


def _plain_multiframe(sop_class: str, modality: str) -> Dataset:
    stack = phantom(lowest=0)
    ds = classic(stack, "MR")[0]
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "SliceThickness",
        "SliceLocation",
        "PixelSpacing",
    ):
        delattr(ds, keyword)
    ds.SOPClassUID, ds.Modality, ds.NumberOfFrames = sop_class, modality, 8
    ds.PixelData = stack.values.astype("<u2").tobytes()
    return ds


def _with_measures_per_frame(ds: Dataset) -> Dataset:
    shared = ds.SharedFunctionalGroupsSequence[0]
    for group in ds.PerFrameFunctionalGroupsSequence:
        group.PixelMeasuresSequence = deepcopy(shared.PixelMeasuresSequence)
    del shared.PixelMeasuresSequence
    return ds
