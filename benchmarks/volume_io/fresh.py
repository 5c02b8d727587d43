"""Peak memory of one call in a process that has done nothing else."""

from __future__ import annotations

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.volume_io.readers import SERIES_READERS


def added_peak(name: str, warm: Path, path: Path) -> int | None:
    """Bytes that a reader of ``SERIES_READERS`` adds to the largest resident set; None where Linux does not tell.

    It has read the small series ``warm`` before, so that its imports are not counted.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_added_peak, name, warm, path).result()


def _added_peak(name: str, warm: Path, path: Path) -> int | None:
    SERIES_READERS[name](warm)
    before = _kilobytes("VmRSS")
    result = SERIES_READERS[name](path)
    after = _kilobytes("VmHWM")
    del result
    return None if before is None or after is None else 1024 * (after - before)


def _kilobytes(key: str) -> int | None:
    file = Path("/proc/self/status")
    found = re.search(rf"^{key}:\s+(\d+) kB", file.read_text(), re.M) if file.is_file() else None
    return int(found[1]) if found else None
