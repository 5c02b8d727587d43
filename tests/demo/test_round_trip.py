"""The demo's way through a PACS: a real site beside a PACS in this process, and Orthanc in the same place."""

from __future__ import annotations

import io
import shutil
import socket
from pathlib import Path

import numpy as np
import pydicom
import pytest
from rich.console import Console

from accunet_monai.bundle import WEIGHTS, find_bundle, load_bundle, read_manifest
from accunet_monai.demo import archive as archives
from accunet_monai.demo.archive import TITLE, running_archive, send
from accunet_monai.demo.hippocampus import BUNDLE, CENTRE_MM, SIDES, load_average_brain, segment_box
from accunet_monai.demo.round_trip import send_through_pacs
from accunet_monai.demo.series import write_demo_series
from accunet_monai.pacs.database import open_database
from accunet_monai.pacs.settings import read_site
from accunet_monai.pacs.status import status
from accunet_monai.volumes import read_series
from tests.conftest import Require


def test_what_comes_back_is_what_the_network_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives.shutil, "which", lambda name: None)  # no Orthanc
    console = Console(record=True, width=160, file=io.StringIO())
    result = send_through_pacs(tmp_path, console)
    brain, predictor = load_average_brain(), load_bundle(BUNDLE)
    direct = np.zeros(brain.shape, np.uint8)
    for sign in SIDES.values():
        corner, found = segment_box(predictor, brain, np.array(CENTRE_MM) * (sign, 1, 1))
        direct[tuple(slice(c, c + n) for c, n in zip(corner, found.shape, strict=True))] = found
    both = (direct > 0) & (result.label_map > 0)
    assert 2 * both.sum() / ((direct > 0).sum() + (result.label_map > 0).sum()) > 0.99  # grey values were rounded
    assert (direct[both] == result.label_map[both]).mean() > 0.99

    manifest = read_manifest(find_bundle(BUNDLE))
    assert manifest is not None
    weights = manifest.files[WEIGHTS.as_posix()].sha256
    assert [facts["weights_sha256"] for facts in result.traces] == [weights] * 2
    assert all(facts["deliveries"] == {"archive": "confirmed"} for facts in result.traces)
    folder = tmp_path / "pacs_round_trip"
    sources = {pydicom.dcmread(one).SeriesInstanceUID for one in (folder / "series").rglob("*.dcm")}
    named = {pydicom.dcmread(seg).ReferencedSeriesSequence[0].SeriesInstanceUID for seg in result.segs}
    assert named == sources
    assert result.picture.is_file()
    assert "2 SEG came back" in console.export_text()

    site = read_site(folder / "site.yaml")
    dimse = site.pacs[0].dimse
    assert dimse is not None
    for port in (site.port, dimse.port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
    engine = open_database(site.database_url)
    assert status(site, engine)["workers"] == []
    engine.dispose()


def test_the_series_are_the_brain_and_orthanc_takes_them(tmp_path: Path, require: Require) -> None:
    brain = load_average_brain()
    folders = write_demo_series(tmp_path / "series", brain)
    for folder in folders:
        assert pydicom.dcmread(folder / "001.dcm").ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
        volume = read_series(folder).reoriented("RAS")
        corner = np.linalg.inv(brain.affine_ras) @ volume.affine_ras[:, 3]
        box = tuple(slice(round(c), round(c) + n) for c, n in zip(corner[:3], volume.shape, strict=True))
        grey = brain.array[box]
        np.testing.assert_allclose(volume.array / 4095, grey / grey.max(), atol=0.51 / 4095)
    before = {file: file.read_bytes() for file in (tmp_path / "series").rglob("*.dcm")}
    write_demo_series(tmp_path / "series", brain)
    assert {file: file.read_bytes() for file in before} == before
    require("orthanc", shutil.which("Orthanc"), "no Orthanc")
    with running_archive(tmp_path / "archive") as archive:
        assert archive.name == "Orthanc"
        files = sorted(folders[0].iterdir())
        send(files, "SCANNER", TITLE, archive.port)
        there = {pydicom.dcmread(one).SOPInstanceUID for one in archive.objects("MR")}
        assert there == {pydicom.dcmread(one).SOPInstanceUID for one in files}
        assert archive.objects("SEG") == []
