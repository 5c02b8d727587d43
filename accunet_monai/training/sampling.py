"""Which slices make up which batch: a pure function of seed and epoch, shared out among processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch.distributed
from torch.utils.data import Sampler

from accunet_monai.errors import DatasetError
from accunet_monai.training.slices import Pick, SliceDataset

Indices = npt.NDArray[np.int64]


class SliceSampler(Sampler[list[Pick]]):
    """Batches of slices in random order, each of one slicing axis, for ``DataLoader(batch_sampler=…)``.

    The order is a pure function of seed and epoch, whatever else draws random numbers and whatever was drawn before;
    so are, through the picks' numbers, the crops and augmentations. Where ``torch.distributed`` runs, each process
    gets its consecutive share of the same batches. Only whole batches are given out.

    Args:
        dataset: whose slices are drawn.
        batch_size: slices per batch, of all processes together.
        slices_per_epoch: how many slices an epoch has: a number, a share of all (0.8), or ``None`` for all whose
            weight is not 0. Up to that many no slice comes twice; beyond it starts again.
        empty: how often a slice without any label is drawn, relative to one with a label; 0 leaves them out.
        balance: draw each label equally often instead of each slice: of every label in turn a slice that holds it,
            cropped so that it is seen, however rare it is; slices without any label count as one more label of weight
            ``empty``. Slices of rare labels then come more than once in an epoch.
        seed: of the order.

    Raises:
        DatasetError: ``DATASET_TOO_SMALL`` (not one whole batch), or ``BATCH_SIZE`` when it cannot be shared out evenly
            among the processes.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        batch_size: int,
        slices_per_epoch: int | float | None = None,
        empty: float = 1.0,
        balance: bool = False,
        seed: int = 0,
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.skip = 0
        self._axes = [
            _AxisSlices(dataset, indices, empty, balance, slices_per_epoch, len(dataset))
            for indices in _by_axis(dataset).values()
        ]
        if not len(self):
            counts = ", ".join(str(axis.wanted) for axis in self._axes) or "0"
            message = f"{counts} slices an epoch make no batch of {batch_size}."
            raise DatasetError("DATASET_TOO_SMALL", message, hint="Lower batch_size or take more cases.")

    def __len__(self) -> int:
        return sum(axis.wanted // self.batch_size for axis in self._axes)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch that the next iteration gives; of its batches the first ``skip`` are left out.

        Without this each iteration that comes to its end is followed by the next epoch.
        """
        self.epoch = epoch
        self.skip = skip

    def __iter__(self) -> Iterator[list[Pick]]:
        first, count = share_of_process(self.batch_size)
        epoch, batches = self.epoch, self._batches(self.epoch)
        for batch in batches[self.skip :]:
            yield batch[first : first + count]
        if self.epoch == epoch:
            self.set_epoch(epoch + 1)

    def _batches(self, epoch: int) -> list[list[Pick]]:
        """All batches of an epoch, of all processes together."""
        random = np.random.default_rng([self.seed, epoch])
        batches = []
        for axis in self._axes:
            drawn = axis.draw(random)
            whole = len(drawn) // self.batch_size
            batches += [drawn[n * self.batch_size : (n + 1) * self.batch_size] for n in range(whole)]
        order = random.permutation(len(batches))
        start = epoch * len(batches) * self.batch_size
        return [
            [
                Pick(index, start + place * self.batch_size + position, label)
                for position, (index, label) in enumerate(batches[number])
            ]
            for place, number in enumerate(order)
        ]


class _AxisSlices:
    """The slices along one axis, and how an epoch draws (slice, label to be seen) from them."""

    def __init__(
        self,
        dataset: SliceDataset,
        indices: Indices,
        empty: float,
        balance: bool,
        slices_per_epoch: int | float | None,
        total: int,
    ) -> None:
        labels = [dataset.labels(int(index)) for index in indices]
        self.indices = indices
        self.weights = np.array([1.0 if found else empty for found in labels])
        usable = int((self.weights > 0).sum())
        self.wanted = _wanted(slices_per_epoch, usable, len(indices), total)
        self.classes: dict[int, Indices] = {}
        self.shares: npt.NDArray[np.float64] = np.empty(0)
        if balance:
            present = sorted(set().union(*labels)) if labels else []
            self.classes = {value: indices[[value in found for found in labels]] for value in present}
            bare = indices[[not found for found in labels]]
            if len(bare) and empty > 0:
                self.classes[0] = bare
            self.shares = np.array([empty if value == 0 else 1.0 for value in self.classes])

    def draw(self, random: np.random.Generator) -> list[tuple[int, int]]:
        if self.classes:
            return self._draw_balanced(random)
        usable = self.indices[self.weights > 0]
        weights = self.weights[self.weights > 0]
        drawn: list[int] = []
        while len(drawn) < self.wanted:  # the smallest of these keys are drawn by weight, none twice
            keys = random.exponential(size=len(usable)) / weights
            drawn += usable[np.argsort(keys, kind="stable")][: self.wanted - len(drawn)].tolist()
        return [(int(index), 0) for index in random.permutation(drawn)]

    def _draw_balanced(self, random: np.random.Generator) -> list[tuple[int, int]]:
        ideal = self.wanted * self.shares / self.shares.sum()
        counts = np.floor(np.cumsum(ideal) + 1e-9).astype(int)
        counts[-1] = self.wanted
        drawn = []
        for value, count in zip(self.classes, np.diff(counts, prepend=0), strict=True):
            members = self.classes[value]
            rounds = [random.permutation(members) for _ in range(-(-int(count) // len(members)))]
            drawn += [(int(index), value) for index in np.concatenate([*rounds, np.empty(0, int)])[:count]]
        return [drawn[place] for place in random.permutation(len(drawn))]


def share_of_process(batch_size: int) -> tuple[int, int]:
    """Where in a batch this process's samples begin, and how many they are.

    Raises:
        DatasetError: ``BATCH_SIZE``.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, batch_size
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if batch_size % processes:
        message = f"a batch of {batch_size} cannot be shared out evenly among {processes} processes."
        raise DatasetError("BATCH_SIZE", message, hint=f"Take a multiple of {processes}.")
    return rank * (batch_size // processes), batch_size // processes


def _by_axis(dataset: SliceDataset) -> dict[int, Indices]:
    found: dict[int, list[int]] = {}
    for index in range(len(dataset)):
        found.setdefault(dataset.spatial_dim(index), []).append(index)
    return {dim: np.array(indices) for dim, indices in found.items()}


def _wanted(slices_per_epoch: int | float | None, usable: int, here: int, total: int) -> int:
    """Slices an epoch takes of an axis, in proportion to what it has."""
    if slices_per_epoch is None or not usable:
        return usable
    share = slices_per_epoch if isinstance(slices_per_epoch, float) else slices_per_epoch / total
    return round(share * here)
