"""Seconds of runs that take turns, and how fast the machine multiplies matrices in between."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds of each run, and the share of its processor time that the kernel took (for page faults, mostly)."""

    seconds: tuple[float, ...]
    kernel_shares: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    @property
    def range(self) -> str:
        """Fastest and slowest run in milliseconds."""
        return f"{1000 * min(self.seconds):.0f}–{1000 * max(self.seconds):.0f}"

    @property
    def kernel_share(self) -> float:
        """The median one."""
        return statistics.median(self.kernel_shares)


def take_turns(runs: Mapping[Name, Callable[[], object]], repeats: int, device: str) -> dict[Name, Timing]:
    """Time every run ``repeats`` times, all in turn, so that a busy moment of the machine hits all of them.

    In its turn each runs twice and the second run counts: it finds the allocator and the caches as a loop over this run
    alone would leave them, whatever ran before. The turns go forth and back. Nothing here compiles or warms up: run
    everything once before.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    shares: dict[Name, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            runs[name]()
            taken, share = _time_once(runs[name], device)
            seconds[name].append(taken)
            shares[name].append(share)
    return {name: Timing(tuple(seconds[name]), tuple(shares[name])) for name in runs}


def matrix_product(precision: torch.dtype, size: int, device: str) -> Callable[[], object]:
    """A run that multiplies two square matrices: 2 · size³ operations, the most a processor can do in one call."""
    left, right = (torch.randn(size, size, device=device).to(precision) for _ in range(2))
    return lambda: torch.mm(left, right)


def _time_once(run: Callable[[], object], device: str) -> tuple[float, float]:
    _synchronise(device)
    used, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    run()
    _synchronise(device)
    taken, now = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    kernel = now.ru_stime - used.ru_stime
    return taken, kernel / max(kernel + now.ru_utime - used.ru_utime, 1e-9)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
