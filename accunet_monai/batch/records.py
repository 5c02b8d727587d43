"""What was computed from what: a JSON file beside each result, by which a later run recognises what is done.

A result and its record are made in a hidden folder, then the record is put in place, then the result, each by a rename.
The record holds the digest of the result, so at whatever moment the process is killed, a result in its place is
recognised, and a record without its result, or with a result that somebody changed, means: to be done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RECORD_FORMAT = "accunet-monai prediction, 1"
RECORD_ENDING = "_seg.json"
STAGING_ENDING = ".partial"


@dataclass(frozen=True)
class Record:
    """How a result came about.

    Attributes:
        source: name of the image's file; of a DICOM series empty.
        title: the source for people.
        input_sha256: digest of the image's files.
        model_sha256: digest of weights, literal sections, contract and package version.
        options: what else decides what is written.
        contract: ``breaches``, rules of the input contract that the image breaks, and ``ignored``, whether some of them
            would have been refused.
        outputs: kind (``label_map``, ``overlay``, …) → ``file``, relative to the folder, and its ``sha256``.
        measures: rows of :func:`accunet_monai.batch.measures.measure`, where asked for.
    """

    source: str
    title: str
    input_sha256: str
    model_sha256: str
    options: Mapping[str, Any]
    contract: Mapping[str, Any]
    outputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    measures: list[dict[str, Any]] | None = None

    @property
    def label_map(self) -> str:
        """The label map's file name."""
        return self.outputs["label_map"]["file"]


class Records:
    """The records of a folder of results.

    Args:
        folder: need not exist; files in it that are no records of this package are passed over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, str], Record] = {}
        for path in sorted(folder.glob(f"*{RECORD_ENDING}")):
            record = _read(path)
            if record is not None:
                self._known[record.source, record.input_sha256] = record

    def find_done(
        self, source: str, input_sha256: str, model_sha256: str, options: Mapping[str, Any], wanted: set[str]
    ) -> Record | None:
        """The record of a source, if everything that is wanted was made of it in the same way and is still there.

        Args:
            source: as of :class:`Record`.
            input_sha256: likewise.
            model_sha256: likewise.
            options: likewise.
            wanted: kinds of output, and ``measures``.
        """
        record = self._known.get((source, input_sha256))
        if record is None or record.model_sha256 != model_sha256 or dict(record.options) != dict(options):
            return None
        there = set(record.outputs) | ({"measures"} if record.measures is not None else set())
        if not wanted <= there or not all(self._is_whole(record.outputs[kind]) for kind in wanted - {"measures"}):
            return None
        name = Path(record.label_map).name.rpartition("_seg")[0]
        shutil.rmtree(self._staging(name), ignore_errors=True)  # of a run killed when everything was in place
        return record

    def write(
        self, name: str, writers: Mapping[str, tuple[str, Callable[[Path], object]]], facts: Mapping[str, Any]
    ) -> Record:
        """Make the outputs of one source and its record, and put them in place: all of them or, killed, to be redone.

        Args:
            name: what all files of the source are named after.
            writers: kind → (file name in the folder, what writes it); the label map is put in place last.
            facts: the other fields of the :class:`Record`.
        """
        staging = self._staging(name)
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        staging.mkdir(parents=True)
        try:
            outputs: dict[str, dict[str, str]] = {}
            for kind, (file, write) in writers.items():
                write(staging / Path(file).name)
                outputs[kind] = {"file": file, "sha256": _sha256(staging / Path(file).name)}
            record = Record(outputs=outputs, **facts)
            stated = staging / f"{name}{RECORD_ENDING}"
            with stated.open("wb") as stream:
                stream.write(json.dumps({"format": RECORD_FORMAT, **asdict(record)}, indent=1).encode())
                stream.flush()
                os.fsync(stream.fileno())
            stated.replace(self.folder / stated.name)
            for kind in sorted(outputs, key="label_map".__eq__):
                target = self.folder / outputs[kind]["file"]
                target.parent.mkdir(exist_ok=True)
                (staging / target.name).replace(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._known[record.source, record.input_sha256] = record
        return record

    def _staging(self, name: str) -> Path:
        """Where the files of a source are made."""
        return self.folder / f".{name}{STAGING_ENDING}"

    def _is_whole(self, output: Mapping[str, str]) -> bool:
        with suppress(OSError):
            return _sha256(self.folder / output["file"]) == output["sha256"]
        return False


def _read(path: Path) -> Record | None:
    """A record, if the file is one: anything else, damaged ones included, only means that the work is done again."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if stated.pop("format") != RECORD_FORMAT:
            return None
        record = Record(**stated)
        files = [Path(output["file"]) for output in record.outputs.values() if str(output["sha256"])]
        record.contract["ignored"], list(record.contract["breaches"]), dict(record.options)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    inside = all(not file.is_absolute() and ".." not in file.parts for file in files)
    return record if inside and "label_map" in record.outputs else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
