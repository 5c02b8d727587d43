"""From a real Orthanc to a site and back with the shipped bundle, sent and fetched; judged by what others read."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from typer.testing import CliRunner

from accunet_monai.bundle import load_bundle
from accunet_monai.cli import app
from accunet_monai.volumes import Volume
from tests.conftest import Require
from tests.pacs import servers
from tests.pacs.receiving import eventually
from tests.pacs.servers import Orthanc, free_port
from tests.pacs.small import site_file, to
from tests.volumes.nifti_as_dicom import write_series

ANNOTATED = "hippocampus_003"
CROP = ("mr_hippocrop", "Study1")

LabelMap = npt.NDArray[np.uint8]


@pytest.fixture
def sources(test_data: Path, tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of two series, and for each a NIfTI file that shows where its voxels lie."""
    crop = test_data / "dicom" / CROP[0]
    (dcm2niix,) = (crop / "ref").glob(f"dcm2niix_{CROP[1]}_*.nii.gz")
    annotated = test_data / "hippocampus" / "imagesTr" / f"{ANNOTATED}.nii.gz"
    image = nib.Nifti1Image.from_filename(annotated)
    values = np.asarray(image.dataobj)
    made = tmp_path / "made"
    write_series(made, Volume((values - values.min()).astype(np.float32), image.affine), "made of NIfTI")
    return {"crop": (crop / "dicom" / CROP[1], dcm2niix), "made": (made, annotated)}


@pytest.mark.parametrize(("fetch", "deliver"), [(None, "dimse"), ("get", "dicomweb"), ("dicomweb", "dimse")])
def test_segs_of_two_series_come_back_where_the_hippocampi_are(
    fetch: str | None,
    deliver: str,
    sources: dict[str, tuple[Path, Path]],
    test_data: Path,
    tmp_path: Path,
    require: Require,
) -> None:
    require("orthanc", shutil.which("Orthanc") and servers.DICOM_WEB.exists(), "no Orthanc with DICOMweb")
    require("dciodvfy", shutil.which("dciodvfy"), "no dicom3tools")
    port = free_port()
    with servers.orthanc(tmp_path / "orthanc", {"ACCUNET": port}) as orthanc:
        for folder, _ in sources.values():
            for file in sorted(folder.iterdir()):
                orthanc.post("/instances", file.read_bytes())
        parts = to({"dimse": orthanc.dimse, "dicomweb": {"url": orthanc.web}}, deliver, "hippocampus_mri")
        peers = [{"ae_title": "ORTHANC", "addresses": ["127.0.0.1"]}]
        file = site_file(
            tmp_path, "hippocampus_mri", port=port, peers=peers, completeness={"quiet_seconds": 2}, **parts
        )
        with serving(file, port):
            if fetch is None:
                everything = orthanc.post("/tools/find", {"Level": "Series", "Query": {}})
                orthanc.post("/modalities/ACCUNET/store", everything)
            else:
                query = ["--pacs", "archive", "--query", "Modality=MR", "--days", "99999", "--by", fetch]
                fetched = CliRunner().invoke(app, ["pacs", "batch", str(file), *query])
                assert fetched.exit_code == 0, fetched.output
            assert eventually(lambda: len(orthanc.instances(Modality="SEG")) == len(sources), 120)
        arrived = {seg.ReferencedSeriesSequence[0].SeriesInstanceUID: seg for seg in segs(orthanc, tmp_path)}
        for name, (folder, grid) in sources.items():
            seg = arrived[pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID]
            referenced = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
            assert len(referenced) == len(list(folder.iterdir()))
            for item in referenced:
                assert len(orthanc.instances(SOPInstanceUID=item.ReferencedSOPInstanceUID)) == 1
            image = nib.Nifti1Image.from_filename(grid)
            found = on_grid(seg, image.affine, image.shape)
            expected = load_bundle("hippocampus_mri").predict(grid).label_map
            assert dice(found, expected) > 0.99, name  # not equal: the made series has its smallest value at 0
            if name == "made":
                truth = nib.Nifti1Image.from_filename(test_data / "hippocampus" / "labelsTr" / grid.name)
                assert dice(found, np.asarray(truth.dataobj).astype(np.uint8)) > 0.8


def segs(orthanc: Orthanc, folder: Path) -> Iterator[pydicom.Dataset]:
    """The valid SEG objects that Orthanc has."""
    for number, one in enumerate(orthanc.instances(Modality="SEG")):
        file = folder / f"arrived_{number}.dcm"
        file.write_bytes(orthanc.file(one))
        said = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False).stderr
        assert [line for line in said.splitlines() if line.startswith("Error")] == []
        yield pydicom.dcmread(file)


def on_grid(seg: pydicom.Dataset, affine: npt.NDArray[Any], shape: tuple[int, ...]) -> LabelMap:
    """A SEG's voxels on a NIfTI file's grid, placed by the patient coordinates that the object itself tells."""
    result = np.zeros(shape, np.uint8)
    shared = seg.SharedFunctionalGroupsSequence[0]
    across, down = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    step_down, step_across = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        origin = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(pixels)
        lps = origin + np.outer(columns * step_across, across) + np.outer(rows * step_down, down)
        ras = np.c_[lps * (-1, -1, 1), np.ones(len(lps))]
        index = (ras @ np.linalg.inv(affine).T)[:, :3]
        assert np.abs(index - index.round()).max(initial=0) < 0.01
        values = segment_numbers(frame, pixels[rows, columns])
        result[tuple(index.round().astype(int).T)] = values
    return result


def segment_numbers(frame: pydicom.Dataset, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of a frame of a binary SEG all the same, of a label map the pixels themselves."""
    if "SegmentIdentificationSequence" in frame:
        return np.full(len(pixels), frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber, np.uint8)
    return pixels


def dice(one: LabelMap, other: LabelMap) -> float:
    """Mean of both labels."""
    found = [2 * ((one == n) & (other == n)).sum() / ((one == n).sum() + (other == n).sum()) for n in (1, 2)]
    return float(np.mean(found))


@contextmanager
def serving(site: Path, port: int) -> Iterator[None]:
    """``accunet pacs serve``, from when it listens until it has stopped."""
    command = [sys.executable, "-m", "accunet_monai.cli", "pacs", "serve", str(site)]
    with (site.parent / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert eventually(lambda: listens(port), 60)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
