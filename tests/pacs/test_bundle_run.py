"""A site run by ``python -m monai.bundle run`` from a bundle's own config."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from accunet_monai.bundle import write_manifest
from accunet_monai.errors import PacsError
from accunet_monai.pacs.bundle_run import run_site
from accunet_monai.pacs.jobs import counts
from tests.conftest import ROOT
from tests.pacs.processes import Process, wait_until
from tests.pacs.servers import free_port
from tests.pacs.small import made_series, made_site, opened, received
from tests.pages import run_monai

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
CONFIG = ROOT / "bundles" / "hippocampus_mri" / "configs" / "pacs.yaml"


@pytest.fixture
def bundle(tmp_path: Path, tiny_verified_bundle: Path) -> Path:
    """The tiny bundle with the shipped bundle's config."""
    bundle = Path(shutil.copytree(tiny_verified_bundle, tmp_path / "tiny"))
    shutil.copy(CONFIG, bundle / "configs")
    write_manifest(bundle)
    return bundle


def monai_run(bundle: Path, folder: Path, *more: str) -> Process:
    config, site = str(bundle / "configs" / "pacs.yaml"), str(folder / "site.yaml")
    return Process(lambda: run_monai(["run", "--config_file", config, "--site", site, *more]), folder / "log")


def test_once_runs_what_waits_and_ends(tmp_path: Path, bundle: Path) -> None:
    site = made_site(tmp_path, bundle=bundle)
    engine = opened(site)
    for seed in range(2):
        received(engine, site, made_series(tmp_path / str(seed), 900 + seed))
    assert monai_run(bundle, tmp_path, "--once", "True").wait(120) == 0, (tmp_path / "log").read_text()
    assert counts(engine) == {"done": 2}
    engine.dispose()


def test_it_serves_until_it_is_ended(tmp_path: Path, bundle: Path) -> None:
    site = made_site(tmp_path, bundle=bundle, port=free_port())
    process = monai_run(bundle, tmp_path)
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and "receiver_started" in log.read_text(), 120)
    process.send(signal.SIGTERM)
    assert process.wait(120) == 0
    parts = [f'"part": "{name}"' in log.read_text() for name in ("receive", "worker-1")]
    assert parts == [True, True]
    assert site.storage.is_dir()


def test_a_site_without_the_bundle_is_not_run(tmp_path: Path, bundle: Path) -> None:
    made_site(tmp_path, bundle="hippocampus_mri")
    with pytest.raises(PacsError, match="BUNDLE_NOT_CONFIGURED"):
        run_site(str(tmp_path / "site.yaml"), str(bundle))
