"""Peak memory of one run in a fresh process, which may not take more than there is.

Processes are forked from a server that has imported PyTorch and run nothing. Each does one run to warm up (to compile,
too), returns what its allocator keeps, and measures the peak of a second run above what was resident before it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import multiprocessing
import re
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from benchmarks.measuring.forms import Case, make_input, make_network, run_once

USABLE = 0.9
"""Share of the available memory that a process may take: the rest of the system needs some, too."""
OUT_OF_MEMORY = re.compile(r"[Cc]an(not|'t) allocate|out of memory|bad_alloc|could not create a (memory|primitive)")
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which getrusage counts the resident set."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a run adds to the peak; with ``fits`` false an estimate from fewer images, or None."""

    added: int | None
    fits: bool


def measure_memory(case: Case, available: int | None = None) -> Memory:
    """Run the case in a fresh process that may take ``available`` bytes (None: what the machine can spare).

    Where it does not fit, half as many images are tried, and so on down to one; memory grows with their number.
    """
    added = _in_fresh_process(case, available)
    if added is not None:
        return Memory(added, fits=True)
    images = case.shape[0]
    while images > 1:
        images //= 2
        added = _in_fresh_process(dataclasses.replace(case, shape=(images, *case.shape[1:])), available)
        if added is not None:
            return Memory(added * case.shape[0] // images, fits=False)
    return Memory(None, fits=False)


def available_memory() -> int | None:
    """Bytes that one process may take without harm to others, where Linux tells."""
    available = _kilobytes("/proc/meminfo", "MemAvailable")
    return None if available is None else int(USABLE * available)


def _in_fresh_process(case: Case, available: int | None) -> int | None:
    """Bytes added to the peak, or None where memory runs out."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "monai.networks.nets"])
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_added_peak, case, torch.get_num_threads(), available).result()
        except BrokenProcessPool:  # killed: memory ran out where no exception could be raised
            return None
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
                return None
            raise


def _added_peak(case: Case, threads: int, available: int | None) -> int:
    torch.set_num_threads(threads)
    if case.device == "cpu":
        _limit_memory(available or available_memory())
    network, x = make_network(case), make_input(case)
    run_once(case, network, x)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(case, network, x)
        return torch.cuda.max_memory_allocated() - before
    _return_free_memory()
    _forget_peak()
    before = _peak()
    run_once(case, network, x)
    return _peak() - before


def _limit_memory(available: int | None) -> None:
    """Make this process fail with an error before the system runs out of memory and kills some process."""
    taken = _kilobytes("/proc/self/status", "VmData")
    if available is not None and taken is not None:
        limit = taken + available
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _return_free_memory() -> None:
    """Hand what glibc's allocator keeps for later back to the system, or the second run would seem to need none."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _forget_peak() -> None:
    """Set the peak to what is resident now, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Bytes of the largest resident set so far."""
    here = _kilobytes("/proc/self/status", "VmHWM")
    return here if here is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def _kilobytes(path: str, key: str) -> int | None:
    """A line ``key: … kB`` of a file of Linux' /proc, in bytes."""
    file = Path(path)
    found = re.search(rf"^{key}:\s+(\d+) kB", file.read_text(), re.M) if file.is_file() else None
    return int(found[1]) * 1024 if found else None
