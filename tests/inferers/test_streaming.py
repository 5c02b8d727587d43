"""What is held in memory, memory-mapped inputs, probabilities in files, windows that are skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accunet_monai.inferers import SliceInferer, accumulate

CLASSES, SHAPE = 40, (64, 32, 32)
ONE_SLICE = CLASSES * 32 * 32 * 4
"""Bytes of float32 logits."""
HALF = 1e-3
"""Rounding to float16 of values up to 1."""


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gave out, not counting memory that is known."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = [tensor.untyped_storage().data_ptr() for tensor in known]
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._sizes[storage.data_ptr()] = max(storage.nbytes(), self._sizes.get(storage.data_ptr(), 0))
        return result

    @property
    def largest(self) -> int:
        return max(size for place, size in self._sizes.items() if place not in self.known)


def spread(x: Tensor) -> Tensor:
    return x[:, :1].expand(-1, CLASSES, -1, -1) + 1


def three(x: Tensor) -> Tensor:
    """Three classes, none of them constant."""
    return torch.cat([x[:, :1] * 0, x[:, :1], torch.cumsum(x[:, :1], 2) / 2], 1)


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of two slices."""
    monkeypatch.setattr(accumulate, "SLAB_BYTES", 2 * ONE_SLICE)


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize(
    "settings", [{}, {"roi_size": (16, 16)}, {"mirror_axes": (0, 1, 2)}, {"skip_below": -1.0}], ids=str
)
def test_a_label_map_never_needs_a_buffer_of_classes_by_volume(settings: dict[str, Any]) -> None:
    volume = torch.zeros(1, 1, *SHAPE)
    with Allocations(volume) as seen:
        label_map = SliceInferer(sw_batch_size=4, **settings)(volume, spread)
    assert label_map.dtype == torch.uint8
    assert seen.largest <= 4 * ONE_SLICE < CLASSES * volume.numel() / 2  # a batch; half a byte a class and voxel
    with Allocations(volume) as seen:
        SliceInferer(output="logits", **{name: settings[name] for name in settings if name == "roi_size"})(
            volume, spread
        )
    assert seen.largest == CLASSES * volume.numel() * 4  # the measure does see such a buffer


@pytest.mark.usefixtures("small_slabs")
def test_with_several_views_classes_by_volume_lie_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "SCRATCH_IN_MEMORY_BYTES", 2**20)
    volume = torch.zeros(1, 1, *SHAPE)
    mapped = []
    make = accumulate.MappedTensor.temporary
    monkeypatch.setattr(accumulate.MappedTensor, "temporary", lambda *a: mapped.append(make(*a)) or mapped[-1])
    with Allocations(volume) as seen:
        SliceInferer(views=["axial", "sagittal", "coronal"], scratch_dir=tmp_path)(volume, spread)
    assert seen.largest == CLASSES * volume.numel() * 4
    seen.known.extend(one.tensor.untyped_storage().data_ptr() for one in mapped)
    assert len(mapped) == 1
    assert seen.largest <= 4 * ONE_SLICE  # coronal and axial slices are twice as large as sagittal ones


def test_mapped_pages_leave_the_process(tmp_path: Path) -> None:
    mapped = accumulate.MappedTensor.temporary((1, 8, 2**20), torch.float32, tmp_path)
    before = _resident()
    mapped.tensor.fill_(1)
    assert _resident() - before > 30 * 2**20
    mapped.release()
    assert _resident() - before < 4 * 2**20
    assert bool((mapped.tensor == 1).all())


def test_slices_across_a_file_touch_few_of_its_pages_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "SLAB_BYTES", 2**20)
    most, release = [0], accumulate.MappedTensor.release
    before = _resident()

    def watched(mapped: accumulate.MappedTensor) -> None:
        most[0] = max(most[0], _resident())
        release(mapped)

    monkeypatch.setattr(accumulate.MappedTensor, "release", watched)
    volume = torch.zeros(1, 1, 128, 128, 256)  # 80 MiB of probabilities; every axial slice lies on all of their pages
    SliceInferer(spatial_dim=2).write_probabilities(tmp_path / "p.npy", volume, lambda x: x.repeat(1, 5, 1, 1))
    assert (tmp_path / "p.npy").stat().st_size > 80 * 2**20
    assert most[0] - before < 50 * 2**20  # the volume alone has 16


def _resident() -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("missing /proc: what is resident is read from there")
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))


# ----------------------------------------------------------------------------------------------------------------------
# Memory-mapped inputs


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_memory_mapped_volumes_are_read_slice_by_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, axis: int
) -> None:
    monkeypatch.setattr(accumulate, "SLAB_BYTES", 0)  # slabs of one slice
    values = np.arange(np.prod(SHAPE), dtype=np.int64).reshape(1, 1, *SHAPE) % 1000
    values.astype(dtype).tofile(tmp_path / "volume.raw")
    mapped = np.memmap(tmp_path / "volume.raw", dtype, "c", shape=(1, 1, *SHAPE))
    volume = torch.from_numpy(mapped)
    kinds = set()

    def network(x: Tensor) -> Tensor:
        kinds.add(x.dtype)
        return torch.cat([500 - x[:, 1:2], x[:, 1:2] - 500], 1)

    inferer = SliceInferer(axis, (20, 40), 3, context_slices=1, padding_mode="replicate")
    with Allocations(volume) as seen:
        label_map = inferer(volume, network)
    assert np.array_equal(label_map.numpy(), values > 500)
    assert kinds == {torch.float32}
    assert seen.largest == values.size  # the label map


# ----------------------------------------------------------------------------------------------------------------------
# Probabilities


@pytest.mark.parametrize("dtype", [None, "float16", "float64"])
def test_probabilities_in_a_file_with_the_label_map(tmp_path: Path, dtype: str | None) -> None:
    volume = torch.randn(2, 1, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"roi_size": (4, 4), "mode": "gaussian", "spatial_dim": 1}
    expected = SliceInferer(output="probabilities", **settings)(volume, three)
    path = tmp_path / "probabilities.npy"
    label_map = SliceInferer(dtype=dtype, **settings).write_probabilities(path, volume, three)
    stored = np.load(path)
    assert stored.dtype == np.dtype(dtype or "float32")
    assert np.abs(stored - expected.numpy()).max() <= (HALF if dtype == "float16" else 1e-7)
    assert torch.equal(label_map, SliceInferer(**settings)(volume, three))
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_no_file_and_keeps_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "probabilities.npy"
    path.write_bytes(b"older")
    calls = []

    def network(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 3:
            raise RuntimeError("half-way")
        return three(x)

    with pytest.raises(RuntimeError, match="half-way"):
        SliceInferer().write_probabilities(path, torch.zeros(1, 1, 4, 5, 5), network)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("dtype", "expected"), [("float16", torch.float16), (None, torch.float32)])
def test_results_in_half_precision(dtype: str | None, expected: torch.dtype) -> None:
    volume = torch.randn(1, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    result = SliceInferer(output="probabilities", dtype=dtype)(volume, three)
    assert result.dtype == expected
    assert torch.allclose(result.float(), SliceInferer(output="probabilities")(volume, three), atol=HALF)


# ----------------------------------------------------------------------------------------------------------------------
# Skipped windows


def counted(seen: list[int]) -> Callable[[Tensor], Tensor]:
    """A network that gives class 2 of three wherever it runs, and notes how many windows it has seen."""

    def network(x: Tensor) -> Tensor:
        seen.append(len(x))
        return torch.tensor([0.0, 0.0, 100.0])[:, None, None].expand(len(x), 3, *x.shape[2:])

    return network


def bright_block() -> Tensor:
    """Air of -1000, and one block: slices 2 and 3 of 6, rows 4 to 7 of 8, columns 0 to 3 of 8."""
    volume = torch.full((1, 1, 6, 8, 8), -1000.0)
    volume[:, :, 2:4, 4:, :4] = 50
    return volume


def test_windows_of_air_are_background_and_cost_nothing() -> None:
    volume, seen = bright_block(), list[int]()
    inferer = SliceInferer(roi_size=(4, 4), overlap=0, skip_below=-900)
    label_map = inferer(volume, counted(seen))
    assert torch.equal(label_map, 2 * (volume > -900).to(torch.uint8))
    assert sum(seen) == 3  # a window in each of two slices, and the first of all, which tells the classes
    seen.clear()
    SliceInferer(roi_size=(4, 4), overlap=0)(volume, counted(seen))
    assert sum(seen) == 24


def test_neighbours_count_and_so_does_a_value_at_the_threshold() -> None:
    volume, seen = bright_block(), list[int]()
    SliceInferer(roi_size=(4, 4), overlap=0, skip_below=-900, context_slices=1)(volume, counted(seen))
    assert sum(seen) == 4 + 1  # slices 1 to 4 see the block
    seen.clear()
    SliceInferer(roi_size=(4, 4), overlap=0, skip_below=50)(volume, counted(seen))
    assert sum(seen) == 1  # nothing is above 50
    seen.clear()
    volume[0, 0, 5] = float("nan")
    SliceInferer(roi_size=(4, 4), overlap=0, skip_below=-900)(volume, counted(seen))
    assert sum(seen) == 3 + 4  # what cannot be compared is not skipped


def test_overlapping_windows_cover_what_their_neighbours_leave_out() -> None:
    volume = torch.full((1, 1, 1, 2, 6), -1000.0)
    volume[..., 3] = 50
    # windows at columns 0-1, 1-2, 2-3, 3-4, 4-5: the third and fourth see column 3, and cover columns 2 to 4
    inferer = SliceInferer(roi_size=(2, 2), overlap=0.5, skip_below=-900)
    assert inferer(volume, counted([]))[0, 0, 0, 0].tolist() == [0, 0, 2, 2, 2, 0]


def test_probabilities_of_skipped_windows_are_certain_background() -> None:
    volume = bright_block()
    settings: dict[str, Any] = {"roi_size": (4, 4), "overlap": 0, "skip_below": -900.0, "output": "probabilities"}
    softmax = SliceInferer(**settings)(volume, counted([]))
    air = (volume <= -900)[0, 0]
    assert torch.equal(softmax[0][:, air], torch.tensor([1.0, 0.0, 0.0])[:, None].expand(-1, int(air.sum())))
    sigmoid = SliceInferer(**settings)(volume, lambda x: x[:, :1] * 0 + 3)
    torch.testing.assert_close(sigmoid, (torch.sigmoid(torch.tensor(3.0)) * ~air)[None, None])
    # of two views each says so for its own windows: here the second one sees everything
    both = SliceInferer(views=["sagittal", "axial"], **settings | {"roi_size": None})(volume, counted([]))
    assert both[0, :, 0, 0, 0].tolist() == pytest.approx([0.5, 0, 0.5], abs=1e-6)


def test_nothing_but_air_and_two_volumes() -> None:
    air = torch.full((2, 1, 3, 4, 4), -1000.0)
    assert not SliceInferer(skip_below=-900)(air, counted([])).any()
    air[1, :, 1] = 0
    assert SliceInferer(skip_below=-900)(air, counted([]))[:, 0, :, 0, 0].tolist() == [[0, 0, 0], [0, 2, 0]]
    mirrored = SliceInferer(skip_below=-900, mirror_axes=(1, 2), sw_batch_size=3)(air, counted([]))
    assert mirrored[:, 0, :, 0, 0].tolist() == [[0, 0, 0], [0, 2, 0]]
