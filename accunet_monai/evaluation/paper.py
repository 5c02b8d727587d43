"""Our Dice beside the published one, for the five sets of pictures of the paper."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open

from accunet_monai.datasets import PICTURE_SETS
from accunet_monai.errors import DatasetError
from accunet_monai.evaluation.measures import mean_of
from accunet_monai.evaluation.tables import TABLE, read_rows
from accunet_monai.networks.checkpoint import CONFIG_KEY

PUBLISHED_DICE: Mapping[str, float] = {
    "isic2018": 89.37,
    "clinicdb": 92.67,
    "busi": 77.19,
    "covid": 73.99,
    "glas": 88.61,
}
"""Test Dice × 100 of ACC-UNet, mean of three splits (Ibtehaz & Kihara, MICCAI 2023, as their logs have it)."""

PUBLISHED_WIDTH = 32
PUBLISHED_SPLITS = 3


@dataclass(frozen=True)
class SplitResult:
    """The test of one training.

    Attributes:
        dice: mean over the pictures of their Dice × 100.
        pictures: number of them.
        empty: how many of them count nowhere, because neither mask nor prediction has anything.
        width: of the network, its first level's channels; ``None`` where there are no weights that tell.
    """

    dice: float
    pictures: int
    empty: int
    width: int | None


@dataclass(frozen=True)
class PaperResult:
    """The tests of a set of pictures.

    Attributes:
        name: of the set.
        splits: number of the split → its result.
    """

    name: str
    splits: Mapping[int, SplitResult]

    @property
    def mean(self) -> float:
        """Of the splits' Dice × 100; NaN without any."""
        return mean_of(result.dice for result in self.splits.values())

    @property
    def spread(self) -> float:
        """Standard deviation (n - 1) of the splits' Dice × 100; NaN of fewer than two."""
        values = [result.dice for result in self.splits.values() if not math.isnan(result.dice)]
        return statistics.stdev(values) if len(values) > 1 else math.nan

    @property
    def difference(self) -> float:
        """Ours less the published one."""
        return self.mean - PUBLISHED_DICE[self.name]

    def differs_by(self) -> list[str]:
        """What is other than published, so that the two figures say little about each other."""
        found = []
        if len(self.splits) != PUBLISHED_SPLITS:
            found.append(f"{len(self.splits)} of {PUBLISHED_SPLITS} splits")
        expected = PICTURE_SETS[self.name].tested
        if any(result.pictures != expected for result in self.splits.values()):
            found.append(f"{_few(result.pictures for result in self.splits.values())} test pictures for {expected}")
        if any(result.width != PUBLISHED_WIDTH for result in self.splits.values()):
            found.append(f"width {_few(result.width for result in self.splits.values())} for {PUBLISHED_WIDTH}")
        return found


def paper_results(folder: str | os.PathLike[str]) -> list[PaperResult]:
    """The results below a folder, ``SET/split_K/test/cases.csv``, in the order of the paper's table.

    Raises:
        DatasetError: ``TABLE_MISSING`` where there is none, and what :func:`read_rows` raises.
    """
    root = Path(folder)
    found = [PaperResult(name, _splits(root / name)) for name in PICTURE_SETS]
    if not any(result.splits for result in found):
        raise DatasetError(
            "TABLE_MISSING",
            f"no results of {', '.join(PICTURE_SETS)}.",
            path=root,
            hint=f"Each lies in SET/split_K/test/{TABLE}, where training with configs/paper puts it.",
        )
    return found


def print_paper_table(results: Sequence[PaperResult], console: Console | None = None) -> None:
    """Print ours, the published one and their difference by set, and what was done otherwise than published.

    Args:
        results: of :func:`paper_results`.
        console: by default a new one.
    """
    table = Table("set", title="Test Dice × 100 of ACC-UNet")
    for column in ("splits", "test pictures", "ours", "published", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        title, published = PICTURE_SETS[result.name].title, f"{PUBLISHED_DICE[result.name]:.2f}"
        if not result.splits:
            table.add_row(title, "0", "–", "–", published, "–")
            continue
        pictures = _few(split.pictures for split in result.splits.values())
        ours = f"{_figure(result.mean)} ± {_figure(result.spread)}"
        table.add_row(title, str(len(result.splits)), pictures, ours, published, _figure(result.difference, "+"))
    console = console or Console()
    console.print(table)
    for result in results:
        if result.splits and result.differs_by():
            title = PICTURE_SETS[result.name].title
            console.print(f"{title}, otherwise than published: {', '.join(result.differs_by())}", soft_wrap=True)
    empty = sum(split.empty for result in results for split in result.splits.values())
    console.print(
        "Ours: mean of the splits ± their standard deviation; a split's Dice is the mean over its test pictures, each "
        f"at 224 × 224. Pictures with neither mask nor prediction count nowhere: {empty}.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _splits(folder: Path) -> dict[int, SplitResult]:
    numbered = [(path.parents[1].name.removeprefix("split_"), path) for path in folder.glob(f"split_*/test/{TABLE}")]
    found = sorted((int(number), path) for number, path in numbered if number.isdecimal())
    return {number: _result(path) for number, path in found}


def _result(table: Path) -> SplitResult:
    dice = [row["dice"] for row in read_rows(table)]
    empty = sum(math.isnan(value) for value in dice)
    return SplitResult(100 * mean_of(dice), len(dice), empty, _width(table.parents[1] / "best.safetensors"))


def _width(weights: Path) -> int | None:
    """Channels of the first level, from the weights' header."""
    try:
        with safe_open(weights, framework="pt") as file:
            return int(json.loads((file.metadata() or {})[CONFIG_KEY])["base_filters"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _few(values: Iterable[object]) -> str:
    """Each value once."""
    return ", ".join("?" if value is None else str(value) for value in dict.fromkeys(values))


def _figure(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.2f}"
