"""The input contract: what a bundle was made for, as rules that an image is held against before the network runs.

It stands in a bundle's ``configs/metadata.json``::

    "input_contract": {
      "made_from": "the 80 training cases, their ranges widened by 20 %",
      "rules": [
        {"quantity": "modality", "allowed": ["MR"], "otherwise": "refuse"},
        {"quantity": "extent_mm", "range": [[0, 55], [0, 75], [0, 60]], "otherwise": "refuse"},
        {"quantity": "relative_median", "range": [0.32, 0.77], "otherwise": "warn"}
      ]
    }

Several rules may concern one quantity, say a wide range that is refused and a narrow one that is flagged. What an image
does not tell (the modality of a NIfTI file) breaks no rule. :func:`propose_ranges` computes ranges from training data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from accunet_monai.errors import BundleError
from accunet_monai.volumes import Volume, read_volume
from accunet_monai.volumes.dicom_source import PROVENANCE_KEY

KEY = "input_contract"
"""Where the contract is in the metadata."""

SAMPLED_VOXELS = 1_000_000
"""Statistics of larger volumes are those of every n-th voxel along each axis: a percentile of a million values is off
by less than a tenth of a per cent, and sorting all voxels of a large CT would take longer than the network."""

Otherwise = Literal["refuse", "warn"]
Ranges = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Rule:
    """One thing that must hold of an image.

    Args:
        quantity: one of ``QUANTITIES``, or ``modality``.
        otherwise: what happens where it does not hold.
        ranges: lowest and highest value; one pair, or one for each axis in the order of RAS.
        allowed: of ``modality``: DICOM's names, e.g. ``MR``.
    """

    quantity: str
    otherwise: Otherwise
    ranges: Ranges = ()
    allowed: tuple[str, ...] = ()

    def breach(self, volume: Volume) -> Breach | None:
        """How a volume breaks the rule, if it does."""
        if self.quantity == "modality":
            source = volume.provenance.get(PROVENANCE_KEY)
            if source is None or source.modality in self.allowed:
                return None
            return Breach(self.quantity, source.modality, " or ".join(self.allowed), self.otherwise)
        values = QUANTITIES[self.quantity](volume)
        ranges = self.ranges * (len(values) // len(self.ranges))
        if all(low <= value <= high for value, (low, high) in zip(values, ranges, strict=True)):
            return None
        expected = " × ".join(f"{low:g} to {high:g}" for low, high in self.ranges)
        return Breach(self.quantity, " × ".join(f"{value:.3g}" for value in values), expected, self.otherwise)


@dataclass(frozen=True)
class Breach:
    """A rule that an image breaks: what was found, what was expected, and whether that is refused."""

    quantity: str
    found: str
    expected: str
    otherwise: Otherwise

    def __str__(self) -> str:
        axes = " (left to right × back to front × bottom to top)" if " × " in self.expected else ""
        return f"{self.quantity} is {self.found}, expected {self.expected}{axes}"


@dataclass(frozen=True)
class InputContract:
    """The rules of a bundle and what they were made from."""

    rules: tuple[Rule, ...]
    made_from: str = ""

    def breaches(self, volume: Volume) -> tuple[Breach, ...]:
        """The rules that a volume breaks; of two on one quantity only the one that refuses, if it is broken."""
        found = [breach for rule in self.rules if (breach := rule.breach(volume)) is not None]
        refused = {breach.quantity for breach in found if breach.otherwise == "refuse"}
        return tuple(b for b in found if b.otherwise == "refuse" or b.quantity not in refused)


def read_contract(metadata: Mapping[str, Any], path: Path) -> InputContract | None:
    """The contract in a bundle's metadata, ``None`` without one.

    Raises:
        BundleError: ``BUNDLE_INVALID`` for one that does not say clearly what is meant.
    """
    if KEY not in metadata:
        return None
    try:
        stated = dict(metadata[KEY])
        rules = tuple(_rule(**rule) for rule in stated.pop("rules"))
        return InputContract(rules, **stated)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError("BUNDLE_INVALID", f"the {KEY} is not understood ({error}).", path=path) from error


def check_input(contract: InputContract | None, volume: Volume, *, ignore: bool = False) -> tuple[Breach, ...]:
    """The rules that a volume breaks without being refused for it, or in spite of that with ``ignore``.

    Raises:
        BundleError: ``INPUT_CONTRACT``, with each rule that refuses.
    """
    breaches = () if contract is None else contract.breaches(volume)
    refused = "; ".join(str(breach) for breach in breaches if breach.otherwise == "refuse")
    if refused and not ignore:
        raise BundleError(
            "INPUT_CONTRACT",
            f"the bundle was not made for this image: {refused}.",
            path=volume.provenance.get("path"),
            hint="Bring it to what the bundle's documentation asks for, or ignore the contract and expect nonsense.",
        )
    return breaches


def propose_ranges(
    images: Iterable[str | os.PathLike[str] | Volume], margin: float = 0.2
) -> dict[str, list[list[float]]]:
    """Ranges for a contract: the smallest and largest value of each quantity over images, widened.

    Args:
        images: training images, or their paths.
        margin: the lowest value is taken times ``1 - margin`` (``1 + margin`` below 0) and the highest likewise.

    Returns:
        quantity → one pair for each axis, or one pair; rounded to three digits.

    Raises:
        BundleError: ``INPUT_EMPTY`` without images.
        VolumeError: what :func:`~accunet_monai.volumes.read_volume` raises.

    Example:
        >>> volumes = [Volume(np.arange(60.0).reshape(3, 4, 5) * scale, np.diag([1, 2, 1, 1])) for scale in (1, 7)]
        >>> propose_ranges(volumes, margin=0.1)["extent_mm"]
        [[2.7, 3.3], [7.2, 8.8], [4.5, 5.5]]
    """
    measured = [_quantities(image if isinstance(image, Volume) else read_volume(image)) for image in images]
    if not measured:
        raise BundleError("INPUT_EMPTY", "there are no images to compute ranges from.")
    return {
        name: [
            [_widened(min(values), -margin), _widened(max(values), margin)]
            for values in zip(*(found[name] for found in measured), strict=True)
        ]
        for name in QUANTITIES
    }


def _rule(*, quantity: str, otherwise: str, allowed: Sequence[str] = (), range: Sequence[Any] = ()) -> Rule:  # noqa: A002 (the name in JSON)
    if otherwise not in ("refuse", "warn"):
        raise ValueError(f"otherwise must be refuse or warn, found {otherwise!r}")
    if quantity == "modality":
        if range or isinstance(allowed, str) or not allowed or not all(isinstance(name, str) for name in allowed):
            raise ValueError("modality takes a list of allowed names")
        return Rule(quantity, otherwise, allowed=tuple(allowed))  # type: ignore[arg-type]
    if quantity not in QUANTITIES or allowed:
        raise ValueError(f"no such rule: {quantity!r} of {', '.join(QUANTITIES)} with a range, or modality")
    pairs = range if range and isinstance(range[0], Sequence) else [range]
    ranges = tuple((float(low), float(high)) for low, high in pairs)
    if not all(low <= high for low, high in ranges) or len(ranges) not in (1, _axes(quantity)):
        raise ValueError(f"{quantity}: a range is [lowest, highest], or one for each of {_axes(quantity)} axes")
    return Rule(quantity, otherwise, ranges)  # type: ignore[arg-type]


def _axes(quantity: str) -> int:
    return 3 if quantity in ("spacing_mm", "extent_mm") else 1


def _quantities(volume: Volume) -> dict[str, tuple[float, ...]]:
    return {name: function(volume) for name, function in QUANTITIES.items()}


def _widened(value: float, share: float) -> float:
    return float(f"{value + abs(value) * share:.3g}")


def _spacing(volume: Volume) -> tuple[float, ...]:
    return volume.reoriented("RAS").spacing


def _extent(volume: Volume) -> tuple[float, ...]:
    upright = volume.reoriented("RAS")
    return tuple(size * edge for size, edge in zip(upright.shape, upright.spacing, strict=True))


def _tilt(volume: Volume) -> tuple[float]:
    """Degrees between an array axis and the patient's axis nearest to it, the largest of the three."""
    directions = volume.affine_ras[:3, :3] / np.linalg.norm(volume.affine_ras[:3, :3], axis=0)
    return (float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0).min(), 0, 1)))),)


def _percentile(percent: float) -> Callable[[Volume], tuple[float]]:
    return lambda volume: (float(np.percentile(_sample(volume), percent)),)


def _relative(statistic: Callable[[Any], Any]) -> Callable[[Volume], tuple[float]]:
    """Of intensities brought to 0 to 1 between their 0.5th and 99.5th percentile: MR has no absolute scale."""

    def measured(volume: Volume) -> tuple[float]:
        values = _sample(volume).astype(np.float64)
        low, high = np.percentile(values, [0.5, 99.5])
        return (float(statistic(np.clip((values - low) / (high - low if high > low else 1.0), 0, 1))),)

    return measured


def _sample(volume: Volume) -> np.ndarray[Any, Any]:
    step = max(1, int(np.ceil((volume.array.size / SAMPLED_VOXELS) ** (1 / 3))))
    return volume.array[::step, ::step, ::step]


QUANTITIES: Mapping[str, Callable[[Volume], tuple[float, ...]]] = {
    "spacing_mm": _spacing,
    "extent_mm": _extent,
    "tilt_degrees": _tilt,
    "percentile_0.5": _percentile(0.5),
    "median": _percentile(50),
    "percentile_99.5": _percentile(99.5),
    "relative_median": _relative(np.median),
    "relative_deviation": _relative(np.std),
}
"""What rules can be about: spacing and size along the patient's axes in the order of RAS, obliqueness, intensities as
they are (Hounsfield units, say), and intensities relative to their own range."""
