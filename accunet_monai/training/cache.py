"""Preprocessed volumes in memory-mapped files: each made once, by whichever process comes first.

A cache folder holds one folder for each volume, named by a digest of the files' content, of the preprocessing and of
the code that does it. What is in it is never changed: it appears whole under its name, or not at all.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from accunet_monai.datasets import content_digest
from accunet_monai.datasets.digest import content_files
from accunet_monai.training.planes import Array, as_planes, count_planes, prepare_volume
from accunet_monai.training.settings_key import describe, settings_key
from accunet_monai.volumes.atomic import PARTIAL_SUFFIX, atomic_output

FORMAT = 1
"""Raised when what is in an entry changes."""

RECORD = "entry.json"

OPEN_FILES = 256
"""Arrays that stay mapped at once: each holds a file descriptor, of which a process often has 1024."""

FRESH_SECONDS = 2.0
"""A file changed this lately may change again without another time stamp: its digest is not remembered."""

_NAMES = ("case", "subject")


class CachedVolume:
    """A volume in a cache: its planes are mapped from disk when they are asked for.

    Args:
        folder: of the entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def planes(self, dim: int) -> tuple[Array, Array]:
        """Image (S, C, rows, columns) and label (S, L, rows, columns), S slices along a spatial axis."""
        return _mapped(self.folder / f"image_{dim}.npy"), _mapped(self.folder / f"label_{dim}.npy")

    def counts(self, dim: int) -> tuple[Array, Array]:
        """Label values (V,) and their number of pixels in each slice (S, V)."""
        table = np.load(self.folder / f"counts_{dim}.npy")
        return table[0], table[1:]


class VolumeCache:
    """The volumes of a dataset as a preprocessing gives them.

    Several processes may fill one folder at once: each volume is made by one of them, while the others make others.
    A folder may serve several datasets and settings; to free the disk, delete it.

    Args:
        folder: made when missing.
        preprocessing: gives ``image`` and ``label``; its settings are part of every entry's name.
        dims: spatial axes along which slices are wanted; each takes a copy on the disk, whose slices lie together.

    Raises:
        DatasetError: ``CACHE_SETTINGS``, see :func:`~accunet_monai.training.settings_key.settings_key`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], preprocessing: Callable[[Any], Any], dims: Sequence[int]
    ) -> None:
        self.folder = Path(folder)
        self.preprocessing = preprocessing
        self.dims = tuple(dims)
        self._settings = settings_key(FORMAT, preprocessing, sorted(set(dims)))
        (self.folder / "files").mkdir(parents=True, exist_ok=True)

    def volumes(self, cases: Sequence[Mapping[str, Any]], progress: bool = False) -> list[CachedVolume]:
        """The cases' volumes, in their order; those that are not there yet are made.

        Raises:
            DatasetError: ``LABEL_GRID``; and whatever the preprocessing raises.
        """
        keys = [self._key(case) for case in cases]
        missing = {key: case for key, case in zip(keys, cases, strict=True) if not self._whole(key)}
        with Progress(transient=True, disable=not (progress and missing)) as bar:
            task = bar.add_task("preprocessing", total=len(missing))
            for _ in self._fill(missing):
                bar.advance(task)
        return [CachedVolume(self.folder / key) for key in keys]

    def _fill(self, missing: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Make what is missing, leaving to other processes what they are at."""
        pending = dict(missing)
        while pending:
            elsewhere = {}
            for key, case in pending.items():
                with self._lock(key, wait=False) as mine:
                    if not mine:
                        elsewhere[key] = case
                        continue
                    if not self._whole(key):
                        self._make(key, case)
                yield key
            if len(elsewhere) == len(pending):
                with self._lock(next(iter(elsewhere)), wait=True):
                    pass
            pending = elsewhere

    def _make(self, key: str, case: Mapping[str, Any]) -> None:
        """Write an entry under another name, then give it its own. The caller holds the lock."""
        for left in self.folder.glob(f".{key}.*{PARTIAL_SUFFIX}"):
            shutil.rmtree(left, ignore_errors=True)
        partial = self.folder / f".{key}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
        image, label = prepare_volume(case, self.preprocessing)
        partial.mkdir()
        try:
            for dim in self.dims:
                planes = as_planes(label, dim)
                values, counts = count_planes(planes)
                _write(partial / f"image_{dim}.npy", as_planes(image, dim))
                _write(partial / f"label_{dim}.npy", planes)
                _write(partial / f"counts_{dim}.npy", np.concatenate([values[None], counts]).astype(np.int64))
            record = {path.name: _state(path) | {"sha256": content_digest(path)} for path in partial.iterdir()}
            with atomic_output(partial / RECORD) as file:
                file.write(json.dumps(record).encode())
            if (self.folder / key).exists():  # damaged; whoever has it mapped keeps what is mapped
                (self.folder / key).rename(self.folder / f".{key}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
            partial.rename(self.folder / key)
        finally:
            for left in self.folder.glob(f".{key}.*{PARTIAL_SUFFIX}"):
                shutil.rmtree(left, ignore_errors=True)

    def _whole(self, key: str) -> bool:
        """Whether an entry is there as it was written; where time stamps are others, by the digest of its files."""
        folder = self.folder / key
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            names = {f"{part}_{dim}.npy" for part in ("image", "label", "counts") for dim in self.dims}
            return set(record) >= names and all(_as_written(folder / name, record[name]) for name in names)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _key(self, case: Mapping[str, Any]) -> str:
        content = {key: self._content(value) for key, value in case.items() if key not in _NAMES}
        text = json.dumps([self._settings, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    def _content(self, value: Any) -> Any:
        """The digest of what a path leads to, remembered as long as no time stamp changes."""
        if not isinstance(value, str | os.PathLike) or not Path(value).exists():
            return describe(value)
        path = Path(value).absolute()
        states = [_state(file) for file in (sorted(path.rglob("*")) if path.is_dir() else content_files(path))]
        memory = self.folder / "files" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:40]}.json"
        try:
            remembered = json.loads(memory.read_text(encoding="utf-8"))
            if remembered["states"] == states:
                return remembered["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        digest = content_digest(path)
        if time.time_ns() - max(state["changed"] for state in states) > FRESH_SECONDS * 1e9:
            with atomic_output(memory) as file:
                file.write(json.dumps({"states": states, "sha256": digest}).encode())
        return digest

    @contextmanager
    def _lock(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Hold an entry's lock against other processes; it is gone when the process is, however that ends."""
        with (self.folder / ".lock").open("ab") as file:
            place = int(key[:15], 16)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
            except OSError:
                yield False
                return
            yield True


def _write(path: Path, array: Array) -> None:
    with path.open("xb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"size": found.st_size, "changed": found.st_mtime_ns}


def _as_written(path: Path, written: Mapping[str, Any]) -> bool:
    found = _state(path)
    same_size: bool = found["size"] == written["size"]
    return same_size and (found["changed"] == written["changed"] or content_digest(path) == written["sha256"])


@functools.lru_cache(maxsize=OPEN_FILES)
def _mapped(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
