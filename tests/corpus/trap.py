"""What a trap is: files, the truth about them, and what a reader has to make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydicom.dataset import Dataset

from tests.corpus.classic import classic
from tests.corpus.encoding import change, named, put_raw, to_bytes
from tests.corpus.enhanced import enhanced
from tests.corpus.phantom import ORIENTATIONS, PLACE_TOLERANCE_MM, Stack, phantom

UPRIGHT = "axial-LP"
FORMS = {"classic": "CT", "enhanced": "MR"}
"""Modality of a form's files, unless a trap is about another one."""


@dataclass(frozen=True)
class Made:
    """What a trap consists of.

    Args:
        files: relative path → content.
        truth: what the files say about the world, one stack for each volume; empty where they do not say it.
        asides: further stacks that may be found beside the truth, such as a localizer.
        skipped: files that find_series has to report as skipped.
        offenders: SOPInstanceUIDs that a refusal has to name.
        entry: what the reader is given instead of the folder, relative to it.
    """

    files: Mapping[str, bytes]
    truth: tuple[Stack, ...] = ()
    asides: tuple[Stack, ...] = ()
    skipped: tuple[str, ...] = ()
    offenders: tuple[str, ...] = ()
    entry: str = "."


@dataclass(frozen=True)
class Case:
    """In which form (classic, enhanced) and orientation a trap is laid."""

    form: str = "classic"
    orientation: str = UPRIGHT

    @property
    def modality(self) -> str:
        """CT of classic and MR of enhanced cases."""
        return FORMS[self.form]

    def phantom(self, **options: object) -> Stack:
        """A phantom in this orientation with values that suit the modality."""
        lowest = -1024.0 if self.modality == "CT" else 0.0
        return phantom(self.orientation, **{"lowest": lowest, **options})  # type: ignore[arg-type]

    def files(self, stack: Stack) -> Mapping[str, bytes]:
        """The files of one series of ``stack`` in this form."""
        if self.form == "classic":
            return named([to_bytes(ds) for ds in classic(stack)])
        return {"enhanced.dcm": to_bytes(enhanced(stack))}


@dataclass(frozen=True)
class Trap:
    """A folder of files with the expected outcome.

    ``codes`` empty: everything in it must be read right, one volume alone from the folder, several one by one after the
    folder as a whole was refused as ambiguous. Otherwise the folder must be refused with one of ``codes``; or, where
    the standard leaves freedom (``or_right``), read right. Where ``planes`` is set the native planes of what is refused
    as a grid must be right.
    """

    name: str
    why: str
    case: Case
    build: Callable[[Case], Made] = field(repr=False)
    codes: frozenset[str] = frozenset()
    or_right: bool = False
    planes: bool = False
    tolerance_mm: float = PLACE_TOLERANCE_MM
    valid: bool = False

    @property
    def id(self) -> str:
        """Name, form and orientation, as the tests show it."""
        return "-".join([self.name.replace(" ", "_"), self.case.form, self.case.orientation])

    @property
    def may_be_right(self) -> bool:
        """Reading it right is expected or at least allowed."""
        return self.or_right or not self.codes

    @cached_property
    def made(self) -> Made:
        """The files and the truth; made once."""
        return self.build(self.case)

    def make(self, folder: Path) -> Path:
        """Writes the files into ``folder`` and gives the path to read."""
        for name, content in self.made.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder / self.made.entry


TRAPS: list[Trap] = []
"""All traps, in the order of their definition; complete once ``tests.corpus`` is imported."""


def trap(
    why: str,
    *codes: str,
    forms: Iterable[str] = ("classic",),
    orientations: Iterable[str] = (UPRIGHT,),
    or_right: bool = False,
    planes: bool = False,
    tolerance_mm: float = PLACE_TOLERANCE_MM,
    valid: bool = False,
) -> Callable[[Callable[[Case], Made]], Callable[[Case], Made]]:
    """Registers the decorated builder under its name, once for each form and orientation.

    Args:
        why: one sentence of what is told and what is true.
        codes: any of these refusals is right; none: it must be read right.
        forms, orientations: it is laid in each combination.
        or_right: reading it right is allowed besides the refusal.
        planes: the native planes must be right although the grid is refused.
        tolerance_mm: how far the files themselves are off the truth.
        valid: dciodvfy must find no error in its files.
    """

    def register(build: Callable[[Case], Made]) -> Callable[[Case], Made]:
        TRAPS.extend(
            Trap(
                name=build.__name__.replace("_", " "),
                why=why,
                case=Case(form, orientation),
                build=build,
                codes=frozenset(codes),
                or_right=or_right,
                planes=planes,
                tolerance_mm=tolerance_mm,
                valid=valid,
            )
            for form in forms
            for orientation in orientations
        )
        return build

    return register


def simple(case: Case, stack: Stack) -> Made:
    """The series of ``stack`` in the case's form, told as it is."""
    return Made(case.files(stack), (stack,))


def made_of(datasets: Sequence[Dataset], *truth: Stack, offender: int | None = None) -> Made:
    """A file for each dataset; ``offender`` is the index of the one that a refusal has to name."""
    offenders = () if offender is None else (datasets[offender].SOPInstanceUID,)
    return Made(named([to_bytes(ds) for ds in datasets]), truth, offenders=offenders)


def all_changed(case: Case, stack: Stack | None = None, *, right: bool = True, **values: object) -> Made:
    """A classic series with attributes set in all slices (None removes one); without truth if not ``right``."""
    stack = stack or case.phantom()
    return made_of([change(ds, **values) for ds in classic(stack)], *([stack] if right else []))


def one_raw(case: Case, keyword: str, value: bytes) -> Made:
    """A classic series with a decimal string of one slice set to bytes that no writer should write."""
    datasets = classic(case.phantom())
    put_raw(datasets[3], keyword, "DS", value)
    return made_of(datasets, offender=3)


BOTH = tuple(FORMS)
EVERY = tuple(ORIENTATIONS)
