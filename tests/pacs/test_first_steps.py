"""The trial beside a PACS in the README, as written; only the ports are others, and it waits no longer than it must."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pydicom

from tests.conftest import Require
from tests.pacs.servers import DICOM_WEB, free_port
from tests.pages import blocks

ROOT = Path(__file__).resolve().parents[2]
PORTS = ("4242", "8042", "11112", "8080")
_DONE = (
    "import sqlite3; state = sqlite3.connect('state/state.sqlite3');"
    "print(*state.execute('select count(*) from jobs where state=?', ['done']).fetchone())"
)


def test_the_trial_of_the_readme(tmp_path: Path, require: Require) -> None:
    require("orthanc", shutil.which("Orthanc") and DICOM_WEB.exists(), "no Orthanc with DICOMweb")
    require("dcmtk", Path("/usr/bin/storescu").exists(), "no DCMTK")
    (block,) = (one for one in blocks(ROOT / "README.md") if one.note == f"by {Path(__file__).relative_to(ROOT)}")
    script = re.sub(r"^(sudo|pip) .*\n", "", block.text, flags=re.M)
    assert script.startswith("cp -r configs/sites/orthanc pacs-trial && cd pacs-trial\n")
    assert script.count("\nsleep 60\n") == 1
    wait = f'until [ "$({sys.executable} -S -c "{_DONE}")" = 2 ]; do sleep 1; done'
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    files = [*(tmp_path / "configs" / "sites" / "orthanc").iterdir(), tmp_path / "trial.sh"]
    begin = "set -e; trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"  # a failure ends what runs in the background
    files[-1].write_text(begin + script.replace("\nsleep 60\n", f"\n{wait}\n") + "wait\n", encoding="utf-8")
    free = {port: str(free_port()) for port in PORTS}
    for file in files:
        text = re.sub(rf"\b({'|'.join(PORTS)})\b", lambda found: free[found[0]], file.read_text(encoding="utf-8"))
        file.write_text(text, encoding="utf-8")
    said = run(files[-1], tmp_path)
    assert "✗" not in said
    assert re.search(r"^jobs +done 2$", said, re.M)
    assert "hippocampus_mri: done, orthanc confirmed" in said
    assert len(re.findall(r"^weights_sha256 +[0-9a-f]{64}$", said, re.M)) == 2
    for seg in (tmp_path / "pacs-trial").glob("SG.*"):
        assert pydicom.dcmread(seg, stop_before_pixels=True).PatientID == "ACCUNET-DEMO"


def run(script: Path, folder: Path) -> str:
    """What the commands print; none of the processes that they start stays."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process: subprocess.Popen[str] = subprocess.Popen(["bash", str(script)], cwd=folder, env=environment, **options)  # type: ignore[call-overload]
    try:
        said: str = process.communicate(timeout=480)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, said
    return said
