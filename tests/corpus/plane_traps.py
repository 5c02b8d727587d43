"""Traps in what each plane says of itself: orientation, position, spacing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.corpus.classic import classic, decimal, decimals
from tests.corpus.encoding import change, named, to_bytes, uid
from tests.corpus.trap import BOTH, EVERY, Case, Made, all_changed, one_raw, simple, trap


@trap("Orientations differ in the sixth decimal from slice to slice, as some scanners write them.", tolerance_mm=0.001)
def orientation_noise(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    noise = np.random.default_rng(4).uniform(-1e-6, 1e-6, (8, 6))
    for ds, offset in zip(datasets, noise, strict=True):
        ds.ImageOrientationPatient = decimals(np.array([*stack.row, *stack.column]) + offset)
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap(
    "Orientation with six decimals, as many archives round it: off unit length by less than a millionth.",
    orientations=("oblique", "double-oblique"),
    tolerance_mm=0.001,
)
def rounded_orientation(case: Case) -> Made:
    stack = case.phantom()
    rounded = decimals(np.round([*stack.row, *stack.column], 6))
    return all_changed(case, stack, ImageOrientationPatient=rounded)


@trap("The row vector has length 2: no direction cosines, so all in-plane distances are in doubt.", "GEOM_ORIENTATION")
def orientation_not_unit(case: Case) -> Made:
    return all_changed(case, right=False, ImageOrientationPatient=[2, 0, 0, 0, 1, 0])


@trap("Row and column are 80 degrees apart.", "GEOM_ORIENTATION")
def orientation_not_perpendicular(case: Case) -> Made:
    angle = np.radians(80)
    skew = decimals([1, 0, 0, np.cos(angle), np.sin(angle), 0])
    return all_changed(case, right=False, ImageOrientationPatient=skew)


@trap("Row and column are the same vector.", "GEOM_ORIENTATION")
def orientation_degenerate(case: Case) -> Made:
    return all_changed(case, right=False, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])


@trap("All six direction cosines are 0.", "GEOM_ORIENTATION", "GEOM_NO_ORIENTATION")
def orientation_zero(case: Case) -> Made:
    return all_changed(case, right=False, ImageOrientationPatient=[0] * 6)


@trap("ImageOrientationPatient has five values.", "GEOM_ORIENTATION", "GEOM_NO_ORIENTATION")
def orientation_of_five_values(case: Case) -> Made:
    return all_changed(case, right=False, ImageOrientationPatient=[1, 0, 0, 0, 1])


@trap("No ImageOrientationPatient anywhere.", "GEOM_NO_ORIENTATION")
def no_orientation(case: Case) -> Made:
    return all_changed(case, right=False, ImageOrientationPatient=None)


@trap("A direction cosine is not a number.", "GEOM_ORIENTATION", "GEOM_NO_ORIENTATION")
def orientation_nan(case: Case) -> Made:
    return one_raw(case, "ImageOrientationPatient", b"1\\0\\nan\\0\\1\\0 ")


@trap("One slice is mirrored: its rows run the other way.", "GEOM_ORIENTATION", "SERIES_AMBIGUOUS")
def one_slice_mirrored(case: Case) -> Made:
    stack = case.phantom()
    others, mirrored = stack.without(4), replace(stack.take([4]), row=-stack.row)
    return Made(named([to_bytes(ds) for ds in [*classic(others), *classic(mirrored, first=9)]]), (others, mirrored))


@trap("No ImagePositionPatient anywhere.", "GEOM_NO_POSITION")
def no_positions(case: Case) -> Made:
    return all_changed(case, right=False, ImagePositionPatient=None)


@trap("One slice has no ImagePositionPatient.", "GEOM_NO_POSITION")
def one_slice_without_position(case: Case) -> Made:
    datasets = classic(case.phantom())
    change(datasets[4], ImagePositionPatient=None)
    return Made(named([to_bytes(ds) for ds in datasets]), offenders=(datasets[4].SOPInstanceUID,))


@trap("One position is not a number.", "GEOM_NO_POSITION")
def position_nan(case: Case) -> Made:
    return one_raw(case, "ImagePositionPatient", b"-52.5\\31.25\\NaN ")


@trap("One position is infinite.", "GEOM_NO_POSITION", "GEOM_NONUNIFORM")
def position_infinite(case: Case) -> Made:
    return one_raw(case, "ImagePositionPatient", b"-52.5\\31.25\\1e999")


@trap("One position is text.", "GEOM_NO_POSITION", "DICOM_UNREADABLE")
def position_text(case: Case) -> Made:
    return one_raw(case, "ImagePositionPatient", b"-52.5\\31.25\\here")


@trap("Only SliceLocation says where the slices are: it is relative and signless.", "GEOM_NO_POSITION")
def slice_location_only(case: Case) -> Made:
    return all_changed(case, right=False, ImagePositionPatient=None)


@trap("SliceLocation has the opposite sign of the position, as some vendors write it.")
def slice_location_reversed(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    for k, ds in enumerate(datasets):
        ds.SliceLocation = decimal(-2.5 * k)
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap("SpacingBetweenSlices says 5 mm, the positions 2.5 mm: the positions are what was scanned.", valid=True)
def spacing_between_slices_lies(case: Case) -> Made:
    return all_changed(case, SpacingBetweenSlices="5")


@trap("SpacingBetweenSlices is negative, as of some NM-derived objects.")
def spacing_between_slices_negative(case: Case) -> Made:
    return all_changed(case, SpacingBetweenSlices="-2.5")


@trap("Slices of 5 mm every 2.5 mm overlap: thickness is not spacing.", valid=True)
def slice_thickness_lies(case: Case) -> Made:
    return all_changed(case, SliceThickness="5")


@trap("SliceThickness is empty (it is of type 2): the positions are enough.")
def slice_thickness_empty(case: Case) -> Made:
    return all_changed(case, SliceThickness="")


@trap("Pixels four times as high as wide: a reader that swaps the two spacings shows here.", forms=BOTH)
def nonsquare_pixels(case: Case) -> Made:
    return simple(case, case.phantom(spacing=(2.0, 0.5)))


@trap("No PixelSpacing: 1 mm would be a guess.", "GEOM_NO_SPACING")
def no_pixel_spacing(case: Case) -> Made:
    return all_changed(case, right=False, PixelSpacing=None)


@trap("Only ImagerPixelSpacing, which is at the detector and not in the patient.", "GEOM_NO_SPACING")
def imager_pixel_spacing_only(case: Case) -> Made:
    return all_changed(case, right=False, PixelSpacing=None, ImagerPixelSpacing=["0.8", "0.7"])


@trap("PixelSpacing is 0.", "GEOM_NO_SPACING")
def zero_pixel_spacing(case: Case) -> Made:
    return all_changed(case, right=False, PixelSpacing=["0", "0"])


@trap("PixelSpacing is negative.", "GEOM_NO_SPACING")
def negative_pixel_spacing(case: Case) -> Made:
    return all_changed(case, right=False, PixelSpacing=["-0.8", "0.7"])


@trap("PixelSpacing has one value.", "GEOM_NO_SPACING")
def pixel_spacing_of_one_value(case: Case) -> Made:
    return all_changed(case, right=False, PixelSpacing=["0.8"])


@trap(
    "Half the slices have another PixelSpacing.",
    *("GEOM_SHAPE", "GEOM_SPACING", "GEOM_NO_SPACING", "GEOM_NONUNIFORM", "SERIES_AMBIGUOUS"),
)
def two_pixel_spacings(case: Case) -> Made:
    stack = case.phantom()
    lower, upper = stack.take(range(4)), replace(stack.take(range(4, 8)), spacing=(0.9, 0.7))
    return Made(named([to_bytes(ds) for ds in [*classic(lower), *classic(upper, first=5)]]), (lower, upper))


@trap("Half the slices have rows and columns swapped (16×20 and 20×16).", "GEOM_SHAPE", "SERIES_AMBIGUOUS")
def swapped_image_sizes(case: Case) -> Made:
    lower, upper = case.phantom().take(range(4)), case.phantom(rows=20, columns=16).take(range(4, 8))
    return Made(named([to_bytes(ds) for ds in [*classic(lower), *classic(upper, first=5)]]), (lower, upper))


@trap("One image has four more rows.", "GEOM_SHAPE", "SERIES_AMBIGUOUS")
def one_larger_image(case: Case) -> Made:
    others, larger = case.phantom().without(3), case.phantom(rows=20).take([3])
    objects = [*classic(others), *classic(larger, first=9, bits=16)]
    return Made(named([to_bytes(ds) for ds in objects]), (others, larger))


@trap("A single slice with its thickness is a volume of one slice.", forms=BOTH, orientations=EVERY)
def single_slice(case: Case) -> Made:
    return simple(case, case.phantom(slices=1))


@trap(
    "A single slice without any thickness: the third spacing would be a guess.",
    "GEOM_SINGLE_SLICE",
    "GEOM_NO_SPACING",
    planes=True,
)
def single_slice_without_thickness(case: Case) -> Made:
    return all_changed(case, case.phantom(slices=1), SliceThickness="")


@trap("Two slices are the shortest stack.", forms=BOTH)
def two_slices(case: Case) -> Made:
    return simple(case, case.phantom(slices=2))


@trap("Spacing of 0.05 mm, as of micro-CT: absolute tolerances of 0.1 mm would call it all one place.", forms=BOTH)
def tiny_voxels(case: Case) -> Made:
    return simple(case, case.phantom(spacing=(0.04, 0.03), step=0.05))


@trap("A micro-CT lacks a slice, 0.05 mm thick.", "GEOM_MISSING_SLICE", forms=BOTH, planes=True)
def tiny_voxels_and_missing_slice(case: Case) -> Made:
    return simple(case, case.phantom(spacing=(0.04, 0.03), step=0.05).without(4))


@trap("Slices further apart than the image is wide.", forms=BOTH)
def large_step(case: Case) -> Made:
    return simple(case, case.phantom(step=40))


@trap("The patient lies 3 m from the frame's origin: differences of positions must not lose digits.", forms=BOTH)
def far_from_origin(case: Case) -> Made:
    return simple(case, case.phantom().moved([3000.125, -2750.5, 1999.75]))


@trap("All slices are at one position with different pixels and nothing to tell them apart.", "GEOM_DUPLICATE")
def all_at_one_position(case: Case) -> Made:
    stack = case.phantom()
    return Made(case.files(stack.moved(-np.outer(np.arange(8), stack.step))))


@trap("One slice lies at its neighbour's place with other pixels.", "GEOM_DUPLICATE", forms=BOTH)
def duplicate_position(case: Case) -> Made:
    stack = case.phantom()
    return Made(case.files(stack.moved(np.outer(np.arange(8) == 4, -stack.step))))


@trap("A second image object of one slice, with the same pixels: one of them is enough.")
def duplicate_position_same_pixels(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    copy = classic(stack)[3]
    copy.SOPInstanceUID, copy.InstanceNumber = uid("copy"), 9
    return Made(named([to_bytes(ds) for ds in [*datasets, copy]]), (stack,))


@trap("A second image object of one slice, with other pixels: which one is meant?", "GEOM_DUPLICATE")
def duplicate_position_other_pixels(case: Case) -> Made:
    datasets = classic(case.phantom())
    other = classic(case.phantom(seed=1))[3]
    other.SOPInstanceUID, other.InstanceNumber = uid("other"), 9
    offenders = (datasets[3].SOPInstanceUID, other.SOPInstanceUID)
    return Made(named([to_bytes(ds) for ds in [*datasets, other]]), offenders=offenders)


@trap("Two slices, each in a frame of reference of its own.", "GEOM_FRAME_OF_REFERENCE", "SERIES_AMBIGUOUS")
def two_frames_of_reference(case: Case) -> Made:
    datasets = classic(case.phantom())
    for ds in datasets[4:]:
        ds.FrameOfReferenceUID = uid("another frame of reference")
    return Made(named([to_bytes(ds) for ds in datasets]))


@trap(
    "No FrameOfReferenceUID, as of anonymised data. Positions still relate within the series; a refusal is allowed.",
    "GEOM_FRAME_OF_REFERENCE",
    or_right=True,
)
def no_frame_of_reference(case: Case) -> Made:
    return all_changed(case, FrameOfReferenceUID=None)
