"""Cases run in processes of their own, each within limits of memory and time; whatever happens there is an outcome."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import re
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

Check = Callable[[Any, Path], str]
"""``check(case, folder)`` gives a word for what happened, or raises; it has an empty folder to itself."""

STOPPING_SECONDS = 0.5
"""Before a case is ended for its time, its stack is written down."""


@dataclass(frozen=True)
class Limits:
    """For one case. ``memory`` bounds the whole address space of the process, imports and all."""

    memory: int = 2 << 30
    seconds: float = 10.0


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        case: the case.
        word: what the check gave, or of a failure its kind: an exception's name, ``hang``, ``memory`` or the signal.
        failed: whether it was more than a word.
        detail: traceback or stack of a failure.
        seconds: wall time.
        peak: bytes of the largest resident set during the case, 0 if unknown.
    """

    case: Any
    word: str
    failed: bool = False
    detail: str = ""
    seconds: float = 0.0
    peak: int = 0


def run_cases(
    cases: Iterable[Any],
    check: Check,
    jobs: int = 1,
    limits: Limits | None = None,
    prepare: Callable[[], object] | None = None,
) -> Iterator[Outcome]:
    """Outcomes in the order in which they come.

    ``check``, and ``prepare`` that each process calls before its first case, must be importable: processes are spawned.
    """
    limits, waiting = limits or Limits(), iter(cases)
    workers: list[_Worker] = []
    try:
        for case in waiting:
            worker = _Worker(check, limits, prepare)
            workers.append(worker)
            worker.start(case)
            if len(workers) == jobs:
                break
        while busy := [worker for worker in workers if worker.case is not None]:
            ready = wait([worker.channel for worker in busy], timeout=0.1)
            for worker in busy:
                outcome = worker.outcome() if worker.channel in ready else worker.overdue()
                if outcome is None:
                    continue
                yield outcome
                worker.case = None
                for case in waiting:
                    worker.start(case)
                    break
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    """A process that is replaced when it has died or had to be ended."""

    def __init__(self, check: Check, limits: Limits, prepare: Callable[[], object] | None) -> None:
        self._check, self._limits, self._prepare = check, limits, prepare
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.case: Any = None
        self._process: Any = None
        self._launch()

    def start(self, case: Any) -> None:
        if not self._process.is_alive():
            self._launch()
        self.case, self._started = case, time.monotonic()
        self.channel.send(case)

    def outcome(self) -> Outcome:
        """Of the case that has been reported, or whose process has died."""
        try:
            reported: Outcome = self.channel.recv()
            return reported
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            word = signal.Signals(-code).name if code < 0 else f"exit {code}"
            return self._failure(word)

    def overdue(self) -> Outcome | None:
        """Ends the process and tells of a hang, once the time is over."""
        if time.monotonic() - self._started < self._limits.seconds:
            return None
        self._process.kill()
        self._process.join()
        return self._failure("hang")

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _launch(self) -> None:
        shutil.rmtree(self._folder / "case", ignore_errors=True)
        context = multiprocessing.get_context("spawn")  # a fork would inherit the memory of the parent
        self.channel, end = context.Pipe()
        arguments = (self._check, self._limits, self._prepare, end, self._folder)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        end.close()
        if self.channel.recv() != "ready":
            raise RuntimeError("a worker did not start")

    def _failure(self, word: str) -> Outcome:
        said = _log_of(self._folder).read_text(errors="replace")
        return Outcome(self.case, word, True, said, time.monotonic() - self._started)


def _serve(
    check: Check, limits: Limits, prepare: Callable[[], object] | None, channel: Connection, folder: Path
) -> None:
    log = os.open(_log_of(folder), os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):  # decoders write to them directly
        os.dup2(log, standard)
    faulthandler.enable(log)
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if prepare is not None:
        prepare()
    channel.send("ready")
    while True:
        try:
            case = channel.recv()
        except EOFError:
            return
        os.ftruncate(log, 0)
        place = folder / "case"
        place.mkdir()
        faulthandler.dump_traceback_later(max(0.1, limits.seconds - STOPPING_SECONDS), file=log)
        outcome = _run(check, case, place)
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(place)
        channel.send(outcome)


def _run(check: Check, case: Any, place: Path) -> Outcome:
    _forget_peak()
    started = time.monotonic()
    word, failed, detail = "", False, ""
    try:
        word = check(case, place)
    except BaseException as error:  # a panic of a decoder in Rust is no Exception
        failed, detail = True, traceback.format_exc()
        word = "memory" if isinstance(error, MemoryError) else type(error).__name__
    seconds, peak = time.monotonic() - started, _peak()
    return Outcome(case, word, failed, detail, seconds, peak)


def _log_of(folder: Path) -> Path:
    return folder / "log"


def _forget_peak() -> None:
    """Set the peak to what is resident now, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        return int(found[1]) * 1024 if found else 0
    return 0
