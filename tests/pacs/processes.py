"""Worker processes that start in no time: forks of this one, which has imported what they need."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from accunet_monai.pacs import queue
from accunet_monai.pacs.logs import configure_logs
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.worker import Worker

STARTED: list[Process] = []
"""Those that a failed test leaves behind are killed when the next begins."""


class Process:
    """A forked child that runs a function, its standard error in a file."""

    def __init__(self, run: Callable[[], None], log: Path) -> None:
        self.log = log
        self.status: int | None = None
        STARTED.append(self)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(handle, 2)
                sys.stderr = os.fdopen(2, "w", buffering=1)
                run()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

    def send(self, signal_number: int) -> None:
        os.kill(self.pid, signal_number)

    def alive(self) -> bool:
        return self.wait(0) is None

    def wait(self, seconds: float = 30) -> int | None:
        """Its exit status, ``None`` when it goes on for longer."""
        until = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() >= until:
                return None
            time.sleep(0.02)
        return self.status

    def kill(self) -> None:
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def worker(site: Site, log: Path, slow: float = 0, version: str | None = None) -> Process:
    """A worker process of a site.

    Args:
        site: its settings.
        log: takes its standard error.
        slow: so many seconds more before each SEG is stored.
        version: of the sequence of steps, when another than the package's.
    """

    def run() -> None:
        configure_logs()
        if slow:
            _slow_down(slow)
        if version is not None:
            queue.APPLICATION_VERSION = version
        one = Worker(site)
        signal.signal(signal.SIGTERM, lambda *_: one.stop())
        one.run(grace_seconds=20)

    return Process(run, log)


def _slow_down(seconds: float) -> None:
    from accunet_monai.pacs import steps

    original = steps.store_result

    def store_result(*args: object) -> object:
        result = original(*args)  # type: ignore[arg-type]
        time.sleep(seconds)
        return result

    steps.store_result = store_result  # type: ignore[assignment]


def wait_until(fact: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > until:
            raise TimeoutError("it did not come true")
        time.sleep(0.1)
