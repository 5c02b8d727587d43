"""The receiver is killed while storescu sends: what was acknowledged is there, whole; nothing is there half."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pydicom
import yaml
from sqlalchemy import select

from accunet_monai.pacs.database import open_database, reading
from accunet_monai.pacs.settings import Site, read_site
from accunet_monai.pacs.tables import instances
from tests.conftest import Require
from tests.pacs.receiving import (
    ANYBODY,
    RawPeer,
    dcmtk,
    eventually,
    instance,
    plain_site,
    save,
    stored_files,
    unfinished,
)

KILLS = 3
SENT = 120


def started(file: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "accunet_monai.cli", "pacs", "receive", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    assert eventually(lambda: answers(port), 60)
    return process


def storescu(port: int, files: list[Path], log: Path) -> subprocess.Popen[bytes]:
    command = ["storescu", "-v", "-aec", "ACCUNET", "127.0.0.1", str(port), *map(str, files)]
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env={"TCP_NODELAY": "1"})


def answers(port: int) -> bool:
    try:
        with RawPeer(port) as peer:
            return peer.answer == 2
    except OSError:
        return False


def checked(site: Site) -> dict[str, str]:
    """SOP UID → sha256 of all rows, each held against its file."""
    engine = open_database(site.database_url)
    with reading(engine) as connection:
        rows = connection.execute(select(instances)).all()
    engine.dispose()
    for row in rows:
        assert hashlib.sha256((site.storage / row.file).read_bytes()).hexdigest() == row.sha256
    return {row.sop_instance_uid: row.sha256 for row in rows}


def test_every_acknowledged_instance_survives_the_receiver(tmp_path: Path, require: Require) -> None:
    require("dcmtk", shutil.which("storescu"), "no DCMTK")
    port = plain_site(tmp_path).port
    settings = {"ae_title": "ACCUNET", "port": port, "storage": "storage", "key_file": "site.key", "peers": ANYBODY}
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump({**settings, "limits": {"keep_free_bytes": 0}}), encoding="utf-8")
    site, random = read_site(file), Random(0)
    datasets = [instance(number, size=128) for number in range(1, SENT + 1)]
    files = save(datasets, tmp_path / "sent")
    acknowledged: set[str] = set()
    for _ in range(KILLS):
        process = started(file, port)
        sending = [storescu(port, files[half::2], tmp_path / f"log-{half}") for half in range(2)]
        assert eventually(lambda: any(b"(Success)" in (tmp_path / f"log-{half}").read_bytes() for half in range(2)), 30)
        time.sleep(0.4 * random.random())
        process.kill()
        process.wait()
        for one in sending:
            one.wait(60)
        for half in range(2):
            text = (tmp_path / f"log-{half}").read_text(encoding="utf-8")
            count = len(re.findall(r"Received Store Response \(Success\)", text))
            acknowledged |= {ds.SOPInstanceUID for ds in datasets[half::2][:count]}
        assert acknowledged <= set(checked(site))
        for stored in stored_files(site):
            assert len(pydicom.dcmread(stored).PixelData) == 2 * 128 * 128
    assert acknowledged
    process = started(file, port)
    assert unfinished(site) == []
    assert dcmtk("storescu", port, *map(str, files)).returncode == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert set(checked(site)) == {ds.SOPInstanceUID for ds in datasets}
    assert len(stored_files(site)) == SENT
