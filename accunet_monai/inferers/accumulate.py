"""Results built slab by slab: the label map or the values of every class, averaged over passes along several axes."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from accunet_monai.inferers.labels import LabelRule

SLAB_BYTES = 32 * 2**20
"""Finished slices are collected up to this size before they are turned into labels and written (at least one slice)."""

SCRATCH_IN_MEMORY_BYTES = 64 * 2**20
"""Sums over several views are kept in memory up to this size, beyond it in a temporary file."""

NUMPY_TYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
"""What probabilities can be stored in."""


class Slab(NamedTuple):
    """Finished slices next to each other in one volume.

    Attributes:
        item: volume of the batch.
        first: index of the first slice.
        values: for each output of the network (slices, channels, rows, columns).
    """

    item: int
    first: int
    values: list[Tensor]


def slabs(finished: Iterable[tuple[int, int, list[Tensor]]]) -> Iterator[Slab]:
    """Collect (item, index, values of each output) that come in order into slabs of up to ``SLAB_BYTES``."""
    pending: list[list[Tensor]] = []
    item, first = 0, 0
    for place, index, values in finished:
        size = sum(tensor.nbytes for tensor in values)
        if pending and (place != item or (len(pending) + 1) * size > SLAB_BYTES):
            yield _joined(item, first, pending)
            pending = []
        if not pending:
            item, first = place, index
        pending.append(values)
    if pending:
        yield _joined(item, first, pending)


class VolumeResult:
    """The result for one output of the network, whatever axis its slabs are taken along.

    With several passes the values of all but the last are summed up, which takes room for every class: in memory, in
    the result itself, or in a file.

    Args:
        shape: (N, channels, X, Y, Z).
        rule: makes a label map of the values; None where the values themselves are wanted.
        are_logits: whether the values are logits, else probabilities.
        passes: how many times all slabs come, along another axis each; their values are averaged.
        dtype: of stored values.
        device: of the result.
        file: a new file for the values in NumPy's format.
        scratch_dir: for sums that are too large for the memory; None is the system's folder.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        rule: LabelRule | None,
        are_logits: bool,
        passes: int,
        dtype: torch.dtype,
        device: torch.device,
        file: Path | None = None,
        scratch_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._rule, self._are_logits, self._passes = rule, are_logits, passes
        self._label_map: Tensor | None = None
        self._mapped: MappedTensor | None = None
        self._values: Tensor | None = None
        if rule is not None:
            self._label_map = torch.empty((shape[0], 1, *shape[2:]), dtype=rule.label_type(shape[1]), device=device)
        if file is not None:
            self._mapped = MappedTensor.npy(file, shape, dtype)
        elif rule is not None and passes > 1 and needed_bytes(shape, dtype) > SCRATCH_IN_MEMORY_BYTES:
            self._mapped = MappedTensor.temporary(shape, dtype, scratch_dir)
        elif rule is None or passes > 1:
            self._values = torch.empty(shape, dtype=dtype, device=device)
        if self._mapped is not None:
            self._values = self._mapped.tensor

    @property
    def wanted(self) -> Tensor:
        """(N, 1, X, Y, Z) labels, or (N, channels, X, Y, Z) values where there is no rule for labels."""
        wanted = self._values if self._label_map is None else self._label_map
        if wanted is None:
            raise ValueError("neither labels nor values are wanted")
        return wanted

    def add(self, number: int, axis: int, slab: Slab, values: Tensor) -> None:
        """Add the values (slices, channels, rows, columns) of a slab along ``axis`` in pass ``number``."""
        last = number == self._passes - 1
        if self._values is not None:
            stored = _part(self._values, axis, slab, len(values))
            if self._passes > 1:
                values = values.to(stored.device, torch.promote_types(values.dtype, stored.dtype))
            for block in self._blocks(values):
                if number > 0:
                    values[block] += stored[block]
                if last and self._passes > 1:
                    values[block] /= self._passes
                stored[block].copy_(values[block])
                if self._mapped is not None:
                    self._mapped.release()
        if last and self._label_map is not None and self._rule is not None:
            labels = self._rule.label_map(values, are_logits=self._are_logits)
            _part(self._label_map, axis, slab, len(values))[:, 0].copy_(labels)

    def _blocks(self, values: Tensor) -> Iterator[tuple[slice, ...]]:
        """The slab as a whole; of a file, parts that touch few pages: a slice across may touch all of them."""
        if self._mapped is None:
            yield (slice(None),)
            return
        *_, y, z = self._mapped.tensor.shape
        rows = max(SLAB_BYTES // (y * z * self._mapped.tensor.itemsize), 1)
        for channel in range(values.shape[1]):
            for row in range(0, values.shape[2], rows):
                yield slice(None), slice(channel, channel + 1), slice(row, row + rows)

    def flush(self) -> None:
        """Write a file's last pages to disk."""
        if self._mapped is not None:
            self._mapped.flush()


class MappedTensor:
    """A tensor in a file. What was written leaves the process' memory with ``release``; the system writes it to disk.

    Attributes:
        tensor: shares the file's pages.
    """

    def __init__(self, array: np.memmap) -> None:
        self._array = array
        self.tensor = torch.from_numpy(array)

    @classmethod
    def temporary(
        cls, shape: tuple[int, ...], dtype: torch.dtype, folder: str | os.PathLike[str] | None
    ) -> MappedTensor:
        """In a file without name, which is gone with the process.

        Raises:
            OSError: where the disk has not enough room.
        """
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), needed_bytes(shape, dtype))
            return cls(np.memmap(file, NUMPY_TYPES[dtype], "r+", shape=shape))

    @classmethod
    def npy(cls, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> MappedTensor:
        """In a new file in NumPy's format.

        Raises:
            OSError: where the disk has not enough room.
        """
        array = np.lib.format.open_memmap(path, "w+", NUMPY_TYPES[dtype], shape)
        with path.open("r+b") as file:
            _reserve(file.fileno(), path.stat().st_size)
        return cls(array)

    def release(self) -> None:
        """Take the pages out of this process' memory; they stay in the system's cache until they are on disk."""
        pages: object = self._array.base
        if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)

    def flush(self) -> None:
        """Write everything to disk."""
        self._array.flush()


def needed_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Of a tensor."""
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _joined(item: int, first: int, pending: list[list[Tensor]]) -> Slab:
    return Slab(item, first, [torch.stack(values) for values in zip(*pending, strict=True)])


def _part(array: Tensor, axis: int, slab: Slab, count: int) -> Tensor:
    """The slab's place in (N, channels, X, Y, Z) as (slices, channels, rows, columns), a view."""
    return array[slab.item].narrow(axis + 1, slab.first, count).movedim(axis + 1, 0)


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now: a full disk is an error here, later it would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
