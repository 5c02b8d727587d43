"""What became of each source of a run: for the caller, on the screen, and as ``predictions.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accunet_monai.batch.records import Record
from accunet_monai.errors import AccunetError
from accunet_monai.volumes import Series, atomic_output

if TYPE_CHECKING:
    from accunet_monai.batch.sources import Source

RUN_FILE = "predictions.json"


@dataclass
class BatchReport:
    """What became of each file and series.

    Attributes:
        written: source → label map.
        skipped: source → label map that an earlier run made of the same content with the same model.
        failed: source → the error that stopped it.
        records: source → how its result came about; of those written and skipped.
    """

    written: dict[Source, Path] = field(default_factory=dict)
    skipped: dict[Source, Path] = field(default_factory=dict)
    failed: dict[Source, AccunetError] = field(default_factory=dict)
    records: dict[Source, Record] = field(default_factory=dict)

    def write(self, folder: Path, run: Mapping[str, Any]) -> Path:
        """Write ``predictions.json``: how the run was started, and every source with what became of it."""
        results = [
            {"source": title(source), "status": status, "label_map": path.name, **self.records[source].contract}
            for status, paths in (("written", self.written), ("skipped", self.skipped))
            for source, path in paths.items()
        ]
        results += [
            {"source": title(source), "status": "failed", "code": error.code, "message": str(error)}
            for source, error in self.failed.items()
        ]
        with atomic_output(folder / RUN_FILE) as stream:
            stream.write(json.dumps({**run, "results": results}, indent=1).encode())
        return folder / RUN_FILE

    def print(self, console: Console) -> None:
        """One line for each failure and each flagged result, and the sums."""
        for source, error in self.failed.items():
            where = "" if error.path is not None and error.path == title(source) else f"{title(source)}: "
            console.print(f"[red]failed[/red] {escape(where + str(error))}", highlight=False, soft_wrap=True)
        for source, record in self.records.items():
            for breach in record.contract["breaches"]:
                line = f"{title(source)}: the bundle was not made for it: {breach}"
                console.print(f"[yellow]flagged[/yellow] {escape(line)}", highlight=False, soft_wrap=True)
        for source, path in (self.written | self.skipped).items():
            if isinstance(source, Series):  # its result has another name
                console.print(escape(f"{path.name}: {title(source)}"), highlight=False, soft_wrap=True)
        table = Table("label maps written", "failed", "done before")
        table.add_row(str(len(self.written)), str(len(self.failed)), str(len(self.skipped)))
        console.print(table)
        done = [*self.written.values(), *self.skipped.values()]
        if done:
            console.print(f"in {done[0].parent}", highlight=False, soft_wrap=True, markup=False)


def title(source: Source) -> str:
    """A source as people know it; what a DICOM header says must not steer the terminal."""
    if isinstance(source, Path):
        return str(source)
    return "".join(letter if letter.isprintable() else "?" for letter in source.describe())
