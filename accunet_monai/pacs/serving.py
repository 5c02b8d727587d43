"""All of a site in child processes under one parent: receiving, workers, the web page."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accunet_monai.pacs.logs import event
from accunet_monai.pacs.settings import Site

RESTART_SECONDS = (1.0, 60.0)
"""Before a child that ended is started again: at first, and at most; doubled while it goes on ending early."""

LONG_LIVED_SECONDS = 120.0


@dataclass
class Child:
    """A part of the site."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause: float = RESTART_SECONDS[0]
    start_at: float = 0.0


class Serving:
    """Starts a site's parts and starts those again that end.

    Args:
        file: the site's settings.
        site: as read from there.
        workers: how many worker processes.
    """

    def __init__(self, file: Path, site: Site, workers: int = 1) -> None:
        parts = {"receive": ["receive"], **{f"worker-{number}": ["worker"] for number in range(1, workers + 1)}}
        if site.web is not None:
            parts["web"] = ["web"]
        base = [sys.executable, "-P", "-m", "accunet_monai.cli", "pacs"]
        self.children = [Child(name, [*base, *words, str(file.resolve())]) for name, words in parts.items()]
        self._stop = threading.Event()

    def run(self, grace_seconds: float = 90) -> None:
        """Serve until :meth:`stop`; then end the parts gracefully, and after so many seconds at once."""
        while not self._stop.wait(0.2):
            for child in self.children:
                self._look_after(child)
        running = [child.process for child in self.children if child.process is not None]
        for process in running:
            process.terminate()
        until = time.monotonic() + grace_seconds
        for process in running:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """End."""
        self._stop.set()

    def _look_after(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is not None:
            if child.process.poll() is None:
                return
            event("part_ended", logging.ERROR, part=child.name, status=child.process.returncode)
            long_lived = now - child.started_at > LONG_LIVED_SECONDS
            child.pause = RESTART_SECONDS[0] if long_lived else min(2 * child.pause, RESTART_SECONDS[1])
            child.process, child.start_at = None, now + child.pause
        if now >= child.start_at:
            child.process, child.started_at = subprocess.Popen(child.command), now  # noqa: S603
            event("part_started", part=child.name, pid=child.process.pid)
