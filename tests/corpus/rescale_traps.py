"""Traps in what the stored values mean: rescale, lookup tables, padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from tests.corpus.classic import add_pixels, classic, code, decimal
from tests.corpus.encoding import (
    change,
)
from tests.corpus.enhanced import enhanced
from tests.corpus.phantom import phantom
from tests.corpus.trap import BOTH, Case, Made, all_changed, made_of, one_raw, trap

AIR_HU = (-1024.0, -1000.0)


@trap("A rescale slope of its own for each slice.", forms=BOTH, valid=True)
def slope_per_slice(case: Case) -> Made:
    return _sloped(case, "CT" if case.form == "classic" else "MR")


@trap("PET: a rescale slope of its own for each slice, with digits that no integer keeps.", forms=BOTH, valid=True)
def slope_per_slice_PET(case: Case) -> Made:  # noqa: N802
    return _sloped(case, "PT")


@trap("An intercept of its own for each slice.", forms=BOTH)
def intercept_per_slice(case: Case) -> Made:
    stack = case.phantom()
    intercepts = 10.0 * np.arange(8)
    truth = stack.with_values(stack.values + intercepts[:, None, None])
    if case.form == "classic":
        return made_of(
            [change(ds, RescaleIntercept=decimal(intercepts[k] - 1024)) for k, ds in enumerate(classic(stack))], truth
        )
    ds = enhanced(stack)
    for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        group.PixelValueTransformationSequence[0].RescaleIntercept = decimal(intercepts[k])
    return made_of([ds], truth)


@trap("A slope that is no whole number on CT: values are not integers.")
def fractional_slope(case: Case) -> Made:
    stack = case.phantom(lowest=0)
    truth = stack.with_values(stack.values * 0.37 - 1024)
    return made_of(classic(truth, slope=0.37), truth)


@trap("A slope of sixteen characters in exponent form.")
def slope_in_exponent_form(case: Case) -> Made:
    stack = phantom(lowest=0)
    truth = stack.with_values(stack.values * 1.2345678901e-3)
    return made_of(
        [change(ds, RescaleSlope="1.2345678901E-03") for ds in classic(truth, "PT", slope=1.2345678901e-3)], truth
    )


@trap("A negative slope is legal.")
def negative_slope(case: Case) -> Made:
    stack = phantom(lowest=0)
    truth = stack.with_values(1535 - stack.values)
    return made_of(classic(truth, slope=-1.0, intercept=1535), truth)


@trap("MR without any rescale: the stored values are the values.", valid=True)
def no_rescale_on_MR(case: Case) -> Made:  # noqa: N802
    stack = phantom(lowest=0)
    return made_of(classic(stack, "MR"), stack)


@trap("CT without any rescale: whether 1024 is to be taken off cannot be known.", "PIXEL_RESCALE")
def no_rescale_on_CT(case: Case) -> Made:  # noqa: N802
    return all_changed(case, right=False, RescaleSlope=None, RescaleIntercept=None, RescaleType=None)


@trap("One CT slice lacks its rescale.", "PIXEL_RESCALE")
def no_rescale_on_one_slice(case: Case) -> Made:
    datasets = classic(case.phantom())
    change(datasets[3], RescaleSlope=None, RescaleIntercept=None)
    return made_of(datasets, offender=3)


@trap("RescaleSlope without RescaleIntercept.", "PIXEL_RESCALE")
def no_intercept(case: Case) -> Made:
    return all_changed(case, right=False, RescaleIntercept=None)


@trap("RescaleIntercept without RescaleSlope.", "PIXEL_RESCALE")
def no_slope(case: Case) -> Made:
    return all_changed(case, right=False, RescaleSlope=None)


@trap("RescaleSlope and RescaleIntercept are there and empty.", "PIXEL_RESCALE")
def empty_rescale(case: Case) -> Made:
    return all_changed(case, right=False, RescaleSlope="", RescaleIntercept="")


@trap("RescaleSlope is 0 on one slice: it would be flat.", "PIXEL_RESCALE")
def slope_zero(case: Case) -> Made:
    datasets = classic(case.phantom())
    datasets[3].RescaleSlope = "0"
    return made_of(datasets, offender=3)


@trap("RescaleSlope is not a number on one slice.", "PIXEL_RESCALE")
def slope_nan(case: Case) -> Made:
    return one_raw(case, "RescaleSlope", b"nan ")


@trap("RescaleSlope is too large for a float.", "PIXEL_RESCALE")
def slope_infinite(case: Case) -> Made:
    return one_raw(case, "RescaleSlope", b"1e999 ")


@trap("RescaleSlope is text.", "PIXEL_RESCALE", "DICOM_UNREADABLE")
def slope_text(case: Case) -> Made:
    return one_raw(case, "RescaleSlope", b"one ")


@trap("RescaleSlope has a decimal comma.", "PIXEL_RESCALE", "DICOM_UNREADABLE")
def slope_with_comma(case: Case) -> Made:
    return one_raw(case, "RescaleSlope", b"1,5 ")


@trap("RescaleSlope has two values.", "PIXEL_RESCALE")
def slope_of_two_values(case: Case) -> Made:
    return one_raw(case, "RescaleSlope", b"1\\2 ")


@trap("The values go through a table (Modality LUT), which is not linear.", "PIXEL_RESCALE")
def modality_lookup_table(case: Case) -> Made:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.ModalityLUTType = "HU"
    table.add_new("LUTData", "OW", (np.arange(4096, dtype="<u2") ** 2 // 4096).astype("<u2").tobytes())
    values = {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None}
    return all_changed(case, right=False, ModalityLUTSequence=Items([table]), **values)


@trap("A window and a VOI LUT are for display: they change no value.", valid=True)
def window_given(case: Case) -> Made:
    return all_changed(case, WindowCenter="40", WindowWidth="400")


@trap("A Real World Value Mapping beside the rescale gives other units: the rescale is what series are compared in.")
def real_world_value_mapping(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    for ds in datasets:
        mapping = Dataset()
        mapping.add_new("RealWorldValueFirstValueMapped", "US", 0)
        mapping.add_new("RealWorldValueLastValueMapped", "US", 4095)
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.5, 7.0
        mapping.LUTLabel, mapping.LUTExplanation = "DENSITY", "density"
        mapping.MeasurementUnitsCodeSequence = Items([code("mg/cm3", "UCUM", "mg/cm3")])
        ds.RealWorldValueMappingSequence = Items([mapping])
    return made_of(datasets, stack)


@trap("Stored -2000 means outside of the scanned circle: it becomes air, not -2000 HU.")
def pixel_padding_value(case: Case) -> Made:
    return _padded(case, -2000)


@trap("Stored -3000 to -2000 means outside: each value of the range becomes air.")
def pixel_padding_range(case: Case) -> Made:
    return _padded(case, -2000, limit=-3000)


@trap("PixelPaddingValue is written as unsigned although the pixels are signed (63536 for -2000).")
def pixel_padding_value_unsigned(case: Case) -> Made:
    made = _padded(case, -2000)
    signed, unsigned = b"\x28\0\x20\x01SS\x02\0", b"\x28\0\x20\x01US\x02\0"
    return replace(made, files={name: content.replace(signed, unsigned) for name, content in made.files.items()})


@trap("PixelPaddingValue is the value of air, which real air shares: it stays air.")
def pixel_padding_is_air(case: Case) -> Made:
    stack = case.phantom()
    return made_of([_with_padding(ds, 0, "US") for ds in classic(stack)], stack)


@trap("PixelPaddingValue of an enhanced MR is 0: it stays 0.", forms=("enhanced",))
def pixel_padding_of_enhanced(case: Case) -> Made:
    stack = case.phantom()
    return made_of([_with_padding(enhanced(stack), 0, "US")], stack)


def _sloped(case: Case, modality: str) -> Made:
    slopes = [0.731, 1.913, 0.27, 3.14159, 1.0, 2.5, 0.0625, 1.75]
    base = phantom(lowest=0)
    intercept = -1024.0 if modality == "CT" else 0.0
    truth = base.with_values(base.values * np.array(slopes)[:, None, None] + intercept)
    if case.form == "classic":
        return made_of(classic(truth, modality, slope=slopes), truth)
    return made_of([enhanced(truth, modality, slope=slopes)], truth)


def _padded(case: Case, value: int, limit: int | None = None) -> Made:
    stack = case.phantom()
    outside = np.zeros(stack.values.shape, bool)
    outside[:, :3, :4] = outside[:, -2:, -5:] = True
    truth = replace(stack.with_values(np.where(outside, np.nan, stack.values)), padding=AIR_HU)
    datasets = classic(stack, signed=True, bits=16, intercept=0)
    for k, ds in enumerate(datasets):
        low = value if limit is None else limit
        fill = np.random.default_rng(k).integers(low, value + 1, stack.values[k].shape)
        add_pixels(ds, np.where(outside[k], fill, stack.values[k]), signed=True, bits=16)
        _with_padding(ds, value, "SS")
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", "SS", limit)
    return made_of(datasets, truth)


def _with_padding(ds: Dataset, value: int, vr: str) -> Dataset:
    ds.add_new("PixelPaddingValue", vr, value)
    return ds
