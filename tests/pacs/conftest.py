"""Servers that several tests share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Require
from tests.pacs import servers


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory, require: Require) -> Iterator[servers.Orthanc]:
    """A PACS, empty at first, shared by all tests of the session."""
    require("orthanc", shutil.which("Orthanc") and servers.DICOM_WEB.exists(), "no Orthanc with DICOMweb")
    with servers.orthanc(tmp_path_factory.mktemp("orthanc")) as it:
        yield it


@pytest.fixture(scope="module")
def postgres(require: Require) -> Iterator[servers.Postgres]:
    """A PostgreSQL server with an empty database."""
    require("postgres", (servers.POSTGRES / "postgres").exists(), "no PostgreSQL 15")
    with servers.postgres() as it:
        yield it


@pytest.fixture(scope="session")
def tiny_verified_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that most of these tests run; not to be changed."""
    from tests.pacs.small import verified_bundle

    return verified_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    """Kills worker processes that a failed test left."""
    yield
    if processes := sys.modules.get("tests.pacs.processes"):
        while processes.STARTED:
            processes.STARTED.pop().kill()
