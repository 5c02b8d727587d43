"""The estimate of memory: counted by hand, and beside what the allocator gives out."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accunet_monai.inferers import MemoryEstimate, SliceInferer, accumulate, estimate
from accunet_monai.inferers.estimate import KEPT_BY_ALLOCATOR

MIB = 2**20


def test_result_and_input_by_hand() -> None:
    told = estimate(SliceInferer(spatial_dim=2, sw_batch_size=8), (2, 3, 64, 64, 20), classes=5, dtype=torch.int16)
    assert told.input == 2 * 3 * 64 * 64 * 20 * 2
    assert told.result == 2 * 64 * 64 * 20
    assert (told.sums, told.on_disk, told.network_call) == (0, 0, None)
    assert (told.windows, told.batches) == (40, 5)
    assert told.added == told.result + told.buffers
    assert told == estimate(SliceInferer(spatial_dim=2, sw_batch_size=8), (2, 3, 64, 64, 20), 5, torch.int16)


def test_windows_mirrorings_and_views_are_counted() -> None:
    shape = (1, 8, 8, 10)
    assert estimate(SliceInferer(roi_size=(4, 4), overlap=0, spatial_dim=2), shape, 2).windows == 4 * 10
    assert estimate(SliceInferer(spatial_dim=2, mirror_axes=(0, 1)), shape, 2).windows == 4 * 10
    views = estimate(SliceInferer(views=["axial", "coronal"], sw_batch_size=4), shape, 2)
    assert (views.windows, views.batches) == (10 + 8, 3 + 2)


def test_probabilities_and_sums_of_views(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, classes = (1, 1, 64, 64, 64), 4
    full = classes * 64**3
    assert estimate(SliceInferer(output="probabilities"), shape, classes).result == 4 * full
    assert estimate(SliceInferer(output="probabilities", dtype="float16"), shape, classes).result == 2 * full
    views = SliceInferer(views=["axial", "coronal"], dtype="float16")
    assert (estimate(views, shape, classes).sums, estimate(views, shape, classes).on_disk) == (2 * full, 0)
    monkeypatch.setattr(accumulate, "SCRATCH_IN_MEMORY_BYTES", 2 * full - 1)
    assert (estimate(views, shape, classes).sums, estimate(views, shape, classes).on_disk) == (0, 2 * full)


def test_the_networks_own_memory_is_added_where_it_is_known() -> None:
    told = estimate(SliceInferer(), (1, 8, 8, 8), 2, network_call=100 * MIB)
    assert told.added == told.result + told.buffers + 100 * MIB
    assert "100.0 MiB a call" in str(told)
    assert "not known a call" in str(estimate(SliceInferer(), (1, 8, 8, 8), 2))


def test_buffers_do_not_grow_with_the_number_of_slices() -> None:
    few, many = (estimate(SliceInferer(spatial_dim=2), (1, 512, 512, n), 5) for n in (100, 1000))
    assert many.buffers == few.buffers
    assert many.result == 10 * few.result


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(8, 8, 8\)"):
        estimate(SliceInferer(), (8, 8, 8), 2)


class Peak(TorchDispatchMode):
    """Most bytes that tensors held at a time, of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in before and storage.data_ptr() not in self._held and storage.nbytes():
                self._held[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self._held.pop, storage.data_ptr(), None)
        self.most = max(self.most, sum(self._held.values()))
        return result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, tuple | list) else []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sw_batch_size": 16},
        {"roi_size": (32, 32), "overlap": 0.5},
        {"mirror_axes": (0, 1, 2), "context_slices": 1},
        {"views": ["axial", "sagittal"]},
        {"output": "probabilities", "dtype": "float16"},
    ],
    ids=str,
)
def test_the_estimate_is_near_what_is_held(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "SLAB_BYTES", MIB)
    volume, classes = torch.zeros(1, 1, 64, 64, 64), 4
    inferer = SliceInferer(**{"spatial_dim": 2, "sw_batch_size": 4, **settings})
    with Peak() as peak:
        inferer(volume, lambda x: x[:, :1].repeat(1, classes, 1, 1))
    told = estimate(inferer, volume.shape, classes)
    assert isinstance(told, MemoryEstimate)
    tensors = told.result + told.sums + told.buffers / KEPT_BY_ALLOCATOR
    assert 0.5 * tensors <= peak.most <= 1.1 * tensors
