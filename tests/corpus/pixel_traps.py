"""Traps in what the pixels are: transfer syntaxes, bits, rescale, padding, colour."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from tests.corpus.classic import classic
from tests.corpus.encoding import (
    change,
)
from tests.corpus.enhanced import enhanced
from tests.corpus.phantom import phantom
from tests.corpus.trap import BOTH, Case, Made, all_changed, made_of, trap

"""What padding of a CT may become: the lowest HU there is, or the HU of air."""


@trap("Signed pixels, 16 bits stored, intercept 0.", valid=True)
def signed_pixels(case: Case) -> Made:
    stack = case.phantom()
    return made_of(classic(stack, signed=True, bits=16, intercept=0), stack)


@trap("Unsigned pixels up to 65535: signed 16 bits would make them negative.")
def unsigned_full_range(case: Case) -> Made:
    stack = phantom(lowest=62000)
    return made_of(classic(stack, "MR", bits=16), stack)


@trap("One byte a pixel; the sum of bytes of an odd slice is padded.")
def eight_bits(case: Case) -> Made:
    stack = phantom(lowest=0, levels=256, rows=15, columns=19)
    return made_of(classic(stack, "MR", bits=8), stack)


@trap("12 bits stored; the four bits above hold an overlay, which is no part of the value.", forms=BOTH)
def garbage_in_high_bits(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack) if case.form == "classic" else [enhanced(stack)]
    for ds in datasets:
        values = np.frombuffer(ds.PixelData, "<u2").copy()
        ds.PixelData = (values | (np.random.default_rng(9).integers(0, 16, len(values)) << 12).astype("u2")).tobytes()
    return made_of(datasets, stack)


@trap("12 bits stored and signed: bit 11 is the sign, whatever is above it.")
def garbage_in_high_bits_signed(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack, signed=True, bits=12, intercept=0)
    for ds in datasets:
        values = np.frombuffer(ds.PixelData, "<u2") & 0x0FFF
        ds.PixelData = (values | (np.random.default_rng(9).integers(0, 16, len(values)) << 12).astype("u2")).tobytes()
    return made_of(datasets, stack)


@trap("12 signed bits with nothing above them: the sign is not extended.")
def sign_not_extended(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack, signed=True, bits=12, intercept=0)
    for ds in datasets:
        ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") & 0x0FFF).tobytes()
    return made_of(datasets, stack)


@trap(
    "HighBit 15 with 12 bits stored (retired, but legal once): shifted pixels. To refuse them is right as well.",
    *("PIXEL_TYPE", "PIXEL_SIZE"),
    or_right=True,
)
def high_bit_15(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    for ds in datasets:
        ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") << 4).astype("<u2").tobytes()
        ds.HighBit = 15
    return made_of(datasets, stack)


@trap("32 bits allocated. Legal for no CT, but unmistakable; a refusal is right as well.", "PIXEL_TYPE", or_right=True)
def thirty_two_bits(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    for ds in datasets:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype("<u4").tobytes()
        ds.BitsAllocated = 32
    return made_of(datasets, stack)


@trap("BitsStored is larger than BitsAllocated.", "PIXEL_TYPE", "PIXEL_SIZE", "DICOM_UNREADABLE", "PIXEL_DECODE")
def impossible_bits(case: Case) -> Made:
    return all_changed(case, right=False, BitsStored=20, HighBit=19)


@trap("BitsAllocated is 0.", "PIXEL_TYPE", "PIXEL_SIZE", "DICOM_UNREADABLE", "PIXEL_DECODE", "PIXEL_TRUNCATED")
def no_bits(case: Case) -> Made:
    return all_changed(case, right=False, BitsAllocated=0, BitsStored=0)


@trap("Rows is 0.", *("PIXEL_SIZE", "PIXEL_TYPE", "GEOM_SHAPE", "PIXEL_MISSING", "SERIES_NOT_IMAGE", "SERIES_NONE"))
def no_rows(case: Case) -> Made:
    return all_changed(case, right=False, Rows=0)


@trap("Half the slices are signed and half unsigned, each with its own intercept.")
def mixed_pixel_representation(case: Case) -> Made:
    stack = case.phantom()
    unsigned, signed = classic(stack), classic(stack, signed=True, bits=16, intercept=0)
    return made_of([(unsigned, signed)[k % 2][k] for k in range(8)], stack)


@trap("MONOCHROME1 on CT says that low values are white: are these HU at all?", "PIXEL_TYPE")
def monochrome1_on_CT(case: Case) -> Made:  # noqa: N802
    return all_changed(case, right=False, PhotometricInterpretation="MONOCHROME1")


@trap(
    "MONOCHROME1 on MR is a matter of display: the values stay. A refusal is right as well, an inversion never.",
    "PIXEL_TYPE",
    or_right=True,
)
def monochrome1_on_MR(case: Case) -> Made:  # noqa: N802
    stack = phantom(lowest=0)
    return made_of([change(ds, PhotometricInterpretation="MONOCHROME1") for ds in classic(stack, "MR")], stack)


@trap("Colour slices.", "PIXEL_TYPE", "SERIES_NOT_IMAGE")
def RGB(case: Case) -> Made:  # noqa: N802
    datasets = classic(case.phantom())
    for ds in datasets:
        _colour(ds)
        ds.PhotometricInterpretation, ds.SamplesPerPixel, ds.PlanarConfiguration = "RGB", 3, 0
        ds.PixelData = np.random.default_rng(2).bytes(16 * 20 * 3)
    return made_of(datasets)


@trap("Palette colour: the values are indices into a table.", "PIXEL_TYPE", "SERIES_NOT_IMAGE")
def palette_colour(case: Case) -> Made:
    datasets = classic(case.phantom())
    for ds in datasets:
        _colour(ds)
        ds.PhotometricInterpretation = "PALETTE COLOR"
        ds.PixelData = np.random.default_rng(2).bytes(16 * 20)
        for colour in ("Red", "Green", "Blue"):
            ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
            ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", np.arange(256, dtype="<u2").tobytes())
    return made_of(datasets)


@trap("YBR_FULL_422 with one sample a pixel contradicts itself.", "PIXEL_TYPE", "PIXEL_SIZE", "PIXEL_DECODE")
def colour_space_of_one_sample(case: Case) -> Made:
    return all_changed(case, right=False, PhotometricInterpretation="YBR_FULL_422")


@trap("Three samples a pixel are declared and one is there.", "PIXEL_TYPE", "PIXEL_TRUNCATED", "PIXEL_SIZE")
def samples_per_pixel_lie(case: Case) -> Made:
    return all_changed(case, right=False, SamplesPerPixel=3, PlanarConfiguration=0)


@trap(
    "No PhotometricInterpretation. One sample a pixel can be read; a refusal is right as well.",
    "PIXEL_TYPE",
    or_right=True,
)
def no_photometric_interpretation(case: Case) -> Made:
    return all_changed(case, PhotometricInterpretation=None)


@trap(
    "Pixels as floats (Float Pixel Data), which no CT may have. NaN among them.",
    *("PIXEL_TYPE", "PIXEL_MISSING", "VOLUME_NONFINITE", "SERIES_NONE", "SERIES_NOT_IMAGE"),
)
def float_pixels_with_nan(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    for k, ds in enumerate(datasets):
        values = stack.values[k].astype("<f4")
        values[3, 4] = np.nan
        change(ds, PixelData=None, BitsAllocated=32, BitsStored=None, HighBit=None, PixelRepresentation=None)
        ds.FloatPixelData = values.tobytes()
    return made_of(datasets)


def _colour(ds: Dataset) -> None:
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    change(ds, RescaleSlope=None, RescaleIntercept=None, RescaleType=None)
