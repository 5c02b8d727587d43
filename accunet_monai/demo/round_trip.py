"""The demo's last step: its volumes go through a PACS and a site beside it, and come back as DICOM SEG."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from accunet_monai.bundle import label_names, load_bundle
from accunet_monai.demo.archive import TITLE, free_port, running_archive, send
from accunet_monai.demo.hippocampus import BUNDLE, draw_hippocampi, load_average_brain
from accunet_monai.demo.series import write_demo_series
from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import open_database
from accunet_monai.pacs.jobs import counts
from accunet_monai.pacs.pseudonyms import make_key
from accunet_monai.pacs.settings import Site, read_site
from accunet_monai.pacs.tracing import trace
from accunet_monai.volumes import DicomSeg, Volume, label_statistics, read_seg

SITE_TITLE = "ACCUNET"
SECONDS = 300
"""For everything: on two free cores it takes a quarter of a minute."""


@dataclass(frozen=True)
class RoundTrip:
    """What came back.

    Attributes:
        archive: what the PACS was.
        segs: the SEG files as the PACS has them.
        label_map: (X, Y, Z) of both on the grid of the brain.
        traces: what the site knows of each, see :func:`accunet_monai.pacs.tracing.trace`.
        picture: the overlay.
    """

    archive: str
    segs: list[Path]
    label_map: np.ndarray[Any, Any]
    traces: list[dict[str, Any]]
    picture: Path


def send_through_pacs(output: Path, console: Console, brain: Volume | None = None) -> RoundTrip:
    """Send a series of each hippocampus to a PACS and to a site, which segments them and delivers to that PACS.

    The site is a real one: ``accunet pacs serve`` in processes of its own, with settings, storage and database in
    ``output/pacs_round_trip``. All of them have ended when this returns.

    Args:
        output: folder, made when missing; what an earlier call left there is removed.
        console: where is told what happened.
        brain: a T1 image in MNI space, 1 mm, RAS; by default the average brain.

    Raises:
        PacsError: ``DEMO_TIMEOUT`` and what a PACS or a site may raise.
    """
    brain = brain or load_average_brain()
    folder = output / "pacs_round_trip"
    shutil.rmtree(folder, ignore_errors=True)
    series = write_demo_series(folder / "series", brain)
    files = [sorted(one.iterdir()) for one in series]
    with running_archive(folder / "archive") as archive, _running_site(folder, archive.port) as site:
        for slices in files:
            send(slices, "SCANNER", TITLE, archive.port)
            send(slices, TITLE, SITE_TITLE, site.port)
        count = sum(map(len, files))
        _say(console, f"{count} MR images of {len(files)} series are in {archive.name} and were sent to the site")
        with console.status("the site waits for a series' end, segments, delivers and asks the PACS for the result"):
            _wait(site, len(files))
        segs = sorted(archive.objects("SEG"))
    engine = open_database(site.database_url)
    traces = [trace(site, engine, str(seg)) for seg in segs]
    engine.dispose()
    label_map = np.zeros(brain.shape, np.uint8)
    for seg in segs:
        _place(read_seg(seg), brain, label_map)
    title = f"Hippocampi in the MNI152 average T1, as DICOM SEG from {archive.name} (not a medical device)"
    picture = draw_hippocampi(brain, label_map, output / "mni152_hippocampi_from_pacs.png", title)
    result = RoundTrip(archive.name, segs, label_map, traces, picture)
    _print(result, brain, console)
    return result


def _settings(folder: Path, archive_port: int) -> Site:
    """Write and read the site's settings."""
    make_key(folder / "site.key")
    settings = {
        "ae_title": SITE_TITLE,
        "port": free_port(),
        "storage": "site",
        "key_file": "site.key",
        "peers": [{"ae_title": TITLE, "addresses": ["127.0.0.1"]}],
        "pacs": [{"name": "archive", "dimse": {"ae_title": TITLE, "host": "127.0.0.1", "port": archive_port}}],
        "destinations": [{"name": "archive", "pacs": "archive", "kind": "dimse"}],
        "bundles": [{"bundle": BUNDLE, "when": {"tag": "Modality", "equals": "MR"}, "destinations": ["archive"]}],
        "completeness": {"quiet_seconds": 1},
        "limits": {"keep_free_bytes": 0},
        "jobs": {"backoff_seconds": 1},
    }
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return read_site(file)


@contextmanager
def _running_site(folder: Path, archive_port: int) -> Iterator[Site]:
    site = _settings(folder, archive_port)
    command = [sys.executable, "-P", "-m", "accunet_monai.cli", "pacs", "serve", str(folder / "site.yaml")]
    with (folder / "site.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
    try:
        _wait_for_log(folder / "site.log", '"receiver_started"', process)
        yield site
    finally:
        process.terminate()
        process.wait(120)


def _wait_for_log(log: Path, words: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS
    while words not in log.read_text(encoding="utf-8"):
        if process.poll() is not None or time.monotonic() > until:
            raise PacsError("DEMO_TIMEOUT", "the site does not start.", path=log)
        time.sleep(0.1)


def _wait(site: Site, wanted: int) -> None:
    """Until so many jobs are done.

    Raises:
        PacsError: ``DEMO_TIMEOUT``.
    """
    engine = open_database(site.database_url)
    until = time.monotonic() + SECONDS
    while counts(engine).get("done", 0) < wanted:
        if time.monotonic() > until:
            hint = f"accunet pacs status {site.storage.parent / 'site.yaml'} --jobs"
            raise PacsError("DEMO_TIMEOUT", f"after {SECONDS} s there is no result.", hint=hint)
        time.sleep(0.2)
    engine.dispose()


def _place(seg: DicomSeg, brain: Volume, label_map: np.ndarray[Any, Any]) -> None:
    """Put the voxels of a SEG where they lie in the brain, by their places in the patient alone."""
    found = seg.volume()
    voxels = np.argwhere(found.array)
    places = voxels @ found.affine_ras[:3, :3].T + found.affine_ras[:3, 3]
    inverse = np.linalg.inv(brain.affine_ras)
    target = np.rint(places @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    label_map[tuple(target.T)] = found.array[tuple(voxels.T)]


def _print(result: RoundTrip, brain: Volume, console: Console) -> None:
    names = label_names(load_bundle(BUNDLE).bundle)
    rows = label_statistics(result.label_map, brain, names)
    volumes = ", ".join(f"{row['name']} {row['volume_ml']:.2f} ml" for row in rows)
    _say(console, f"{len(result.segs)} SEG came back, both sides together: {volumes}")
    table = Table("accunet pacs trace", *(f"SEG {number + 1}" for number in range(len(result.traces))))
    for name in ("job", "state", "deliveries", "bundle", "version", "weights_sha256"):
        table.add_row(name, *(_shown(facts[name]) for facts in result.traces))
    console.print(table)
    for what, path in (*(("SEG", seg) for seg in result.segs), ("picture", result.picture)):
        _say(console, f"{what + ':':9}{path}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {state}" for name, state in value.items())
    return str(value)[:16] if len(str(value)) == 64 else str(value)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
