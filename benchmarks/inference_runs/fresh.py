"""Peak memory of one volume in a process that has done nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.inferers.inferer import SliceInferer as MonaiSliceInferer
from torch import Tensor

from accunet_monai.inferers import SliceInferer, estimate

BATCH = 8
AXIS = 2
SETTINGS: dict[str, Any] = {"spatial_dim": AXIS, "sw_batch_size": BATCH}
WARM_SLICES = 2
"""Of the volume that is segmented before, so that what is set up once is not counted."""


@dataclass(frozen=True)
class Added:
    """Bytes that a run adds to the peak, seconds that it takes, and the bytes that were estimated, where they are."""

    peak: int | None
    seconds: float
    estimated: int | None


def ours(classes: int, settings: dict[str, Any], volume: Tensor, scratch: Path) -> Tensor:
    inferer = SliceInferer(**SETTINGS, **settings, scratch_dir=scratch)
    label_map: Tensor = inferer(volume, partial(trivial, classes))
    return label_map


def ours_into_file(classes: int, settings: dict[str, Any], volume: Tensor, scratch: Path) -> Tensor:
    inferer = SliceInferer(**SETTINGS, **settings)
    return inferer.write_probabilities(scratch / "probabilities.npy", volume, partial(trivial, classes))


def monais(classes: int, settings: dict[str, Any], volume: Tensor, scratch: Path) -> Tensor:
    roi_size = [size for dim, size in enumerate(volume.shape[2:]) if dim != AXIS]
    inferer = MonaiSliceInferer(roi_size=roi_size, **SETTINGS, **settings)
    logits = inferer(volume, partial(trivial, classes))
    assert isinstance(logits, Tensor)
    return logits


def trivial(classes: int, x: Tensor) -> Tensor:
    """As little as a network can do: the image times a number for each class."""
    return x[:, :1] * torch.linspace(-1, 1, classes)[:, None, None]


THREE_VIEWS = ("axial", "coronal", "sagittal")
RUNS: dict[str, tuple[Callable[[int, dict[str, Any], Tensor, Path], Tensor], dict[str, Any]]] = {
    "MONAI, logits": (monais, {}),
    "ours, label map": (ours, {}),
    "ours, label map, windows of half the size": (ours, {"roi_size": (-2, -2), "overlap": 0.5}),
    "ours, label map, 4 mirrorings": (ours, {"mirror_axes": (0, 1)}),
    "ours, label map, 3 views, sums on disk": (ours, {"views": THREE_VIEWS, "dtype": "float16"}),
    "ours, label map and float16 probabilities in a file": (ours_into_file, {"dtype": "float16"}),
}
"""By name: what runs, and with which settings. MONAI's comes first: ratios are against it."""


def added_memory(name: str, shape: tuple[int, int, int], classes: int, threads: int) -> Added:
    """Segment a volume (X, Y, Z) of noise as ``RUNS[name]`` says, in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports count neither as memory nor as time
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_added_memory, name, shape, classes, threads).result()


def _added_memory(name: str, shape: tuple[int, int, int], classes: int, threads: int) -> Added:
    torch.set_num_threads(threads)
    run, settings = RUNS[name]
    settings = _with_sizes(settings, shape)
    volume = torch.empty(1, 1, *shape).uniform_(-1, 1)
    estimated = None
    if run is not monais:
        estimated = estimate(SliceInferer(**SETTINGS, **settings), volume.shape, classes).added
    with tempfile.TemporaryDirectory(prefix="inference-", dir=Path.cwd()) as folder, torch.no_grad():
        run(classes, settings, volume[..., :WARM_SLICES].contiguous(), Path(folder))
        gc.collect()
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        before, started = _kilobytes("VmRSS"), time.perf_counter()
        result = run(classes, settings, volume, Path(folder))
        seconds, after = time.perf_counter() - started, _kilobytes("VmHWM")
        del result
    return Added(None if before is None or after is None else 1024 * (after - before), seconds, estimated)


def _with_sizes(settings: dict[str, Any], shape: tuple[int, int, int]) -> dict[str, Any]:
    """A ``roi_size`` below 0 is a part of the slice: -2 is half of it."""
    if "roi_size" not in settings:
        return settings
    plane = [size for dim, size in enumerate(shape) if dim != AXIS]
    parts = [size // -part for size, part in zip(plane, settings["roi_size"], strict=True)]
    return settings | {"roi_size": tuple(parts)}


def _kilobytes(key: str) -> int | None:
    """Of this process, where Linux tells."""
    file = Path("/proc/self/status")
    found = re.search(rf"^{key}:\s+(\d+) kB", file.read_text(), re.M) if file.is_file() else None
    return int(found[1]) if found else None
