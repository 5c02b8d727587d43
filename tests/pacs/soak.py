"""A site in steady use, for growth of threads, memory and descriptors: python -m tests.pacs.soak --minutes 20

``accunet pacs serve`` with a worker and the page, as installed. DCMTK sends it a new series every few seconds, which it
delivers to Orthanc; meanwhile others ask for echoes, break off associations in the middle and read page and metrics.
Every minute a line is printed; the last tells whether the last quarter of the time differs from the second. The first
is not counted: models are loaded and pools filled then.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pydicom
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

from accunet_monai.pacs.database import make_engine
from accunet_monai.pacs.jobs import counts
from accunet_monai.pacs.settings import Site, read_site
from tests.pacs.servers import free_port, orthanc
from tests.pacs.small import made_series, site_file, to, verified_bundle

SAMPLE_SECONDS = 5.0
TOKEN = "a token of the soak"
PARTS = ("parent", "receive", "worker", "web")
MEMORY_GROWTH = 1.05
"""Allocators give back late: so much more between two quarters is still flat, 5 % of a part's memory."""


@dataclass(frozen=True)
class Sample:
    """A process and its children at a moment: threads, resident bytes, file descriptors."""

    threads: int
    memory: int
    files: int


@dataclass
class Traffic:
    """What others do to the site, each in a thread, until ``stop``; what they did is counted."""

    site: Site
    folder: Path
    stop: threading.Event
    series: int = 0
    echoes: int = 0
    aborted: int = 0
    pages: int = 0

    def start(self) -> list[threading.Thread]:
        acts = ((self._send, 4.0), (self._echo, 3.0), (self._abort, 7.0), (self._look, 5.0))
        threads = [threading.Thread(target=self._often, args=act, daemon=True) for act in acts]
        for thread in threads:
            thread.start()
        return threads

    def _often(self, act: Callable[[int], None], seconds: float) -> None:
        for number in itertools.count():
            began = time.monotonic()
            act(number)
            if self.stop.wait(max(0.1, seconds - (time.monotonic() - began))):
                return

    def _send(self, number: int) -> None:
        series = made_series(self.folder / f"series-{number}", number)
        self._dcmtk("storescu", "+sd", str(series))
        shutil.rmtree(series)
        self.series += 1

    def _echo(self, number: int) -> None:
        self._dcmtk("echoscu")
        self.echoes += 1

    def _abort(self, number: int) -> None:
        """One instance of a series of its own, which never gets more, and no release."""
        folder = made_series(self.folder / "broken", 1_000_000 + number)
        ae = AE("SENDER")
        ae.add_requested_context(MRImageStorage)
        association = ae.associate("127.0.0.1", self.site.port, ae_title=self.site.ae_title)
        if association.is_established:
            association.send_c_store(pydicom.dcmread(next(folder.iterdir())))
            association.abort()
        shutil.rmtree(folder)
        self.aborted += 1

    def _look(self, number: int) -> None:
        if self.site.web is None:
            return
        for path in ("/", "/metrics", "/healthz"):
            address = f"http://127.0.0.1:{self.site.web.port}{path}"
            request = urllib.request.Request(address, headers={"Authorization": f"Bearer {TOKEN}"})
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:
                self.pages += len(answer.read()) > 0

    def _dcmtk(self, tool: str, *arguments: str) -> None:
        ours = ["-aet", "SENDER", "-aec", self.site.ae_title, "127.0.0.1", str(self.site.port)]
        subprocess.run([tool, *ours, *arguments], capture_output=True, check=False, timeout=60)


def measure(parent: psutil.Process) -> dict[str, Sample]:
    """The parts of the site by name; a part's children (which decode what was received) count as its own."""
    found = {"parent": sample([parent])}
    for child in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            name = next((word for word in child.cmdline() if word in PARTS), None)
            if name is not None:
                found[name] = sample([child, *child.children(recursive=True)])
    return found


def sample(processes: list[psutil.Process]) -> Sample:
    alive = [process for process in processes if process.is_running()]
    return Sample(
        sum(process.num_threads() for process in alive),
        sum(process.memory_info().rss for process in alive),
        sum(process.num_fds() for process in alive),
    )


def growing(samples: list[dict[str, Sample]]) -> list[str]:
    """What is more in the last quarter than in the second, by medians."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = []
    for part, what in itertools.product(PARTS, ("threads", "files", "memory")):
        before, after = (statistics.median(getattr(one[part], what) for one in some) for some in (early, late))
        if after > before * (MEMORY_GROWTH if what == "memory" else 1):
            grown.append(f"{what} of {part} {before:g} → {after:g}")
    return grown


@contextlib.contextmanager
def serving(folder: Path, dimse: dict[str, object]) -> Iterator[tuple[Site, psutil.Process]]:
    """``accunet pacs serve`` as a process, which ends with SIGTERM."""
    bundle = verified_bundle(folder)
    (folder / "token").write_text(TOKEN, encoding="ascii")
    file = site_file(
        folder,
        bundle=bundle,
        port=free_port(),
        peers=[{"ae_title": "SENDER", "addresses": ["127.0.0.1"]}],
        completeness={"quiet_seconds": 3},
        web={"port": free_port(), "token_file": str(folder / "token")},
        **(to({"dimse": dimse}, "dimse", bundle) | {"jobs": {"device": "cpu"}}),
    )
    command = [sys.executable, "-m", "accunet_monai.cli", "pacs", "serve", str(file)]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield read_site(file), psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def run(minutes: int, out: Callable[[str], None]) -> list[str]:
    """What grew."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name, orthanc(Path(name) / "orthanc") as pacs:
        folder, stop = Path(name), threading.Event()
        with serving(folder, pacs.dimse) as (site, parent):
            while set(measure(parent)) != set(PARTS) or not (site.storage / "state.sqlite3").exists():
                time.sleep(0.5)
            engine = make_engine(site.database_url)
            traffic = Traffic(site, folder, stop)
            threads = traffic.start()
            samples: list[dict[str, Sample]] = []
            out("minute   done  " + "".join(f"{part}: threads MiB files".rjust(28) for part in PARTS))
            began = time.monotonic()
            for minute in range(1, minutes + 1):
                while time.monotonic() < began + 60 * minute:
                    time.sleep(SAMPLE_SECONDS)
                    samples.append(measure(parent))
                out(line(minute, counts(engine).get("done", 0), samples[-1]))
            stop.set()
            for thread in threads:
                thread.join(60)
            out(f"{traffic.series} series, {traffic.echoes} echoes, {traffic.aborted} aborted, {traffic.pages} pages")
            out(f"jobs {counts(engine)}")
            engine.dispose()
    return growing(samples)


def line(minute: int, done: int, now: dict[str, Sample]) -> str:
    parts = "".join(f"{one.threads:>14} {one.memory >> 20:>7} {one.files:>5}" for one in map(now.__getitem__, PARTS))
    return f"{minute:>6} {done:>6}  {parts}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=20)
    options = parser.parse_args()
    grown = run(options.minutes, lambda text: print(text, flush=True))
    print("grows: " + "; ".join(grown) if grown else "flat")
    sys.exit(bool(grown))
