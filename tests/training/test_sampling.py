"""Batches follow from seed and epoch alone, hold each label as often as asked, and are shared out among processes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accunet_monai.errors import DatasetError
from accunet_monai.training import SliceDataset, SliceSampler
from accunet_monai.training.slices import Pick

SHAPE = (4, 6, 20)


def cases(number: int = 2) -> list[dict[str, Any]]:
    """Label 1 in ten of twenty axial slices, label 2 in one of each case, eight or nine without any."""
    made = []
    for case in range(number):
        image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(1, *SHAPE) + 10_000 * case
        label = np.zeros((1, *SHAPE), np.uint8)
        label[..., 5:15] = 1
        label[0, 1, 2, 3 + case] = 2
        made.append({"image": image, "label": label})
    return made


def slices(roi: tuple[int, int] = (4, 6), dim: int | list[int] = 2, **options: Any) -> SliceDataset:
    return SliceDataset(cases(), dict, roi, dim, progress=False, **options)


def epoch_of(sampler: SliceSampler, epoch: int, skip: int = 0) -> list[list[Pick]]:
    sampler.set_epoch(epoch, skip)
    return list(sampler)


def test_an_epoch_draws_every_slice_once_in_an_order_of_its_own() -> None:
    sampler = SliceSampler(slices(), 8, seed=3)
    first, second = epoch_of(sampler, 1), epoch_of(sampler, 2)
    assert len(sampler) == len(first) == 5
    for batches in (first, second):
        assert sorted(pick.index for batch in batches for pick in batch) == list(range(40))
    assert first != second
    assert [pick.index for batch in first for pick in batch] != list(range(40))


@given(seed=st.integers(0, 9), epoch=st.integers(0, 50), skip=st.integers(0, 6))
def test_the_order_follows_from_seed_and_epoch_whatever_was_drawn_before(seed: int, epoch: int, skip: int) -> None:
    data = slices()
    sampler, other = SliceSampler(data, 8, seed=seed), SliceSampler(data, 8, seed=seed)
    list(sampler)
    torch.rand(3)
    expected = epoch_of(sampler, epoch)
    assert epoch_of(other, epoch, skip) == expected[skip:]
    assert list(other) == epoch_of(sampler, epoch + 1)  # after a resumed epoch the next is whole


def test_no_two_draws_of_a_training_have_one_number() -> None:
    sampler = SliceSampler(slices(), 8)
    numbers = [pick.draw for _ in range(4) for batch in sampler for pick in batch]
    assert len(set(numbers)) == len(numbers) == 4 * 40


def test_slices_without_a_label_come_as_rarely_as_asked() -> None:
    data = slices()
    none = {index for index in range(40) if not data.labels(index)}
    assert len(none) == 18
    left_out = epoch_of(SliceSampler(data, 11, empty=0), 0)
    assert {pick.index for batch in left_out for pick in batch} == set(range(40)) - none
    drawn = Counter[bool]()
    sampler = SliceSampler(data, 10, slices_per_epoch=10, empty=0.1)
    for epoch in range(300):
        drawn.update(pick.index in none for batch in epoch_of(sampler, epoch) for pick in batch)
    # ten of 22 with weight 1 and 18 with 0.1, none twice: followed through by hand as expected weights of what is left
    expected = sum(1.8 / (22 - drawn_before + 1.8) for drawn_before in np.linspace(0, 9, 10))
    assert drawn[True] / 300 == pytest.approx(expected, rel=0.15)


def test_a_share_of_an_epoch_is_that_many_slices_and_more_than_all_starts_again() -> None:
    data = slices()
    assert sum(map(len, epoch_of(SliceSampler(data, 4, slices_per_epoch=0.5), 0))) == 20
    assert sum(map(len, epoch_of(SliceSampler(data, 4, slices_per_epoch=12), 0))) == 12
    twice = Counter(p.index for batch in epoch_of(SliceSampler(data, 10, slices_per_epoch=60), 0) for p in batch)
    assert set(twice.values()) == {1, 2}
    assert sum(twice.values()) == 60


def test_balance_draws_each_label_equally_often_and_shows_it() -> None:
    data = slices(roi=(2, 2))
    sampler = SliceSampler(data, 30, slices_per_epoch=30, balance=True)
    (batch,) = epoch_of(sampler, 5)
    assert Counter(pick.label for pick in batch) == {0: 10, 1: 10, 2: 10}
    for pick in batch:
        assert not data.labels(pick.index) if pick.label == 0 else pick.label in data.labels(pick.index)
        assert pick.label == 0 or pick.label in data[pick]["label"]  # cropped to 2 × 2 of 4 × 6 pixels
    rows = {tuple(torch.nonzero(data[p]["label"][0] == 2)[0].tolist()) for p in batch if p.label == 2}
    assert len(rows) > 1  # and not always in the same corner


def test_each_process_gets_its_part_of_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = SliceSampler(slices(), 8, seed=1)
    whole = epoch_of(sampler, 2)
    parts = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        parts.append(epoch_of(sampler, 2))
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(DatasetError, match="among 3 processes") as caught:
        epoch_of(sampler, 2)
    assert caught.value.code == "BATCH_SIZE"


def test_batches_of_several_axes_hold_slices_of_one() -> None:
    data = SliceDataset(cases(), dict, (4, 6, 20), [0, 2], progress=False)
    sampler = SliceSampler(data, 4)
    batches = epoch_of(sampler, 0)
    assert len(batches) == len(sampler) == 2 + 10
    assert all(len({data.spatial_dim(pick.index) for pick in batch}) == 1 for batch in batches)
    assert {data.spatial_dim(batch[0].index) for batch in batches} == {0, 2}


def test_less_than_a_batch_is_refused() -> None:
    with pytest.raises(DatasetError, match="40 slices an epoch make no batch of 41") as caught:
        SliceSampler(slices(), 41)
    assert caught.value.code == "DATASET_TOO_SMALL"


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
def test_the_loader_gives_the_same_batches_with_workers_as_without() -> None:
    data = slices(roi=(3, 3))
    found = []
    for workers in (0, 2):
        sampler = SliceSampler(data, 10)
        sampler.set_epoch(4)
        loader = torch.utils.data.DataLoader(data, batch_sampler=sampler, num_workers=workers)
        found.append(list(loader))
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("image", "label", "draw"))
