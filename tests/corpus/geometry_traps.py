"""Traps in where the planes lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.corpus.classic import classic, decimal
from tests.corpus.encoding import named, to_bytes
from tests.corpus.trap import BOTH, EVERY, Case, Made, all_changed, simple, trap


@trap("Nothing is wrong: every reader should get this right.", forms=BOTH, orientations=EVERY, valid=True)
def plain(case: Case) -> Made:
    return simple(case, case.phantom())


@trap(
    "One slice inside is missing: 7 evenly spread slices would be a lie.",
    "GEOM_MISSING_SLICE",
    forms=BOTH,
    orientations=EVERY,
    planes=True,
    valid=True,
)
def missing_slice(case: Case) -> Made:
    return simple(case, case.phantom().without(3))


@trap("Two neighbouring slices are missing.", "GEOM_MISSING_SLICE", forms=BOTH, planes=True)
def two_missing_slices(case: Case) -> Made:
    return simple(case, case.phantom().without(3, 4))


@trap("Every other slice of the upper half is missing.", "GEOM_MISSING_SLICE", forms=BOTH, planes=True)
def many_missing_slices(case: Case) -> Made:
    return simple(case, case.phantom(slices=12).without(7, 9))


@trap(
    "A gap of 1.4 slices between two blocks: no regular grid holds it.",
    "GEOM_NONUNIFORM",
    "GEOM_MISSING_SLICE",
    forms=BOTH,
    planes=True,
)
def gap_between_blocks(case: Case) -> Made:
    stack = case.phantom()
    return simple(case, stack.moved(np.outer(np.arange(8) >= 4, 1.4 * stack.step)))


@trap(
    "The distances grow from slice to slice.",
    "GEOM_NONUNIFORM",
    "GEOM_MISSING_SLICE",
    forms=BOTH,
    orientations=EVERY,
    planes=True,
    valid=True,
)
def nonuniform_spacing(case: Case) -> Made:
    stack = case.phantom()
    return simple(case, stack.moved(np.outer(0.1 * np.arange(8) ** 2, stack.normal)))


@trap("Half the slices are twice as far apart.", "GEOM_NONUNIFORM", "GEOM_MISSING_SLICE", forms=BOTH, planes=True)
def two_spacings(case: Case) -> Made:
    stack = case.phantom()
    return simple(case, stack.moved(np.outer(np.maximum(np.arange(8) - 4, 0), stack.step)))


@trap("One slice lies a fifth of the spacing too far up.", "GEOM_NONUNIFORM", forms=BOTH, planes=True)
def one_slice_off(case: Case) -> Made:
    stack = case.phantom()
    return simple(case, stack.moved(np.outer(np.arange(8) == 5, 0.2 * stack.step)))


@trap(
    "The gantry was tilted: positions move within the plane, so a perpendicular grid would shear the patient.",
    "GEOM_TILT",
    forms=BOTH,
    orientations=EVERY,
    planes=True,
    valid=True,
)
def gantry_tilt(case: Case) -> Made:
    return simple(case, case.phantom(tilt_degrees=18.5))


@trap("The same with the gantry tilted the other way.", "GEOM_TILT", forms=BOTH, planes=True)
def gantry_tilt_negative(case: Case) -> Made:
    return simple(case, case.phantom(tilt_degrees=-12))


@trap("A tilt of 1.5 degrees: 0.5 mm over the stack, more than half a pixel.", "GEOM_TILT", forms=BOTH, planes=True)
def slight_gantry_tilt(case: Case) -> Made:
    return simple(case, case.phantom(tilt_degrees=1.5))


@trap(
    "SpacingBetweenSlices of a tilted stack is the table's step, which is not the distance along the normal.",
    "GEOM_TILT",
    planes=True,
)
def gantry_tilt_with_table_step(case: Case) -> Made:
    stack = case.phantom(tilt_degrees=18.5)
    return all_changed(case, stack, SpacingBetweenSlices=decimal(float(np.linalg.norm(stack.step))))


@trap("A tilted stack lacks a slice.", "GEOM_TILT", "GEOM_MISSING_SLICE", forms=BOTH, planes=True)
def gantry_tilt_and_missing_slice(case: Case) -> Made:
    return simple(case, case.phantom(tilt_degrees=18.5).without(2))


@trap("One slice was shifted 5 mm sideways.", "GEOM_TILT", "GEOM_NONUNIFORM", forms=BOTH, planes=True)
def sideways_shift(case: Case) -> Made:
    stack = case.phantom()
    return simple(case, stack.moved(np.outer(np.arange(8) == 5, 5 * stack.row)))


@trap(
    "Each slice is turned further about the row axis, as of radial acquisitions: no stack at all.",
    "GEOM_ORIENTATION",
    "SERIES_AMBIGUOUS",
)
def fan(case: Case) -> Made:
    stack, angles = case.phantom(), np.radians(10 * np.arange(8))
    planes = [
        replace(stack.take([k]), column=np.array([0, np.cos(angle), np.sin(angle)])) for k, angle in enumerate(angles)
    ]
    objects = [classic(plane, first=1 + k)[0] for k, plane in enumerate(planes)]
    return Made(named([to_bytes(ds) for ds in objects]), tuple(planes))


@trap(
    "Positions are rounded to a hundredth of a millimetre: 0.33, 0.67, 1.0. That is no missing slice.",
    forms=BOTH,
    orientations=EVERY,
    tolerance_mm=0.03,
)
def rounded_positions(case: Case) -> Made:
    stack = case.phantom(step=1 / 3)
    return Made(case.files(replace(stack, positions=np.round(stack.positions, 2))), (stack,))


@trap("Positions jitter by 2 micrometres.", forms=BOTH, orientations=EVERY, tolerance_mm=0.01)
def jittered_positions(case: Case) -> Made:
    stack = case.phantom()
    jitter = np.random.default_rng(3).uniform(-0.002, 0.002, (8, 3))
    return Made(case.files(stack.moved(jitter)), (stack,))


@trap("PatientPosition FFP says how the patient lay; positions are in the patient's own axes already.", valid=True)
def feet_first_prone(case: Case) -> Made:
    return all_changed(case, PatientPosition="FFP")
