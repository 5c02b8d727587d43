"""Series that are no grid, plane by plane into DICOM SEG, for bundles to which the grid makes no difference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from rich.console import Console

from accunet_monai.batch import predict_files
from accunet_monai.bundle import find_bundle, load_bundle
from accunet_monai.errors import SeriesError
from accunet_monai.volumes import Volume, find_series, read_planes, read_series
from accunet_monai.volumes.dicom_seg_read import read_seg
from tests import made_bundle
from tests.batch.tiny import tiny_bundle
from tests.volumes.nifti_as_dicom import write_series

OPTIONS = {"device": "cpu", "console": Console(quiet=True)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Axial slices one by one; four labels, three of which have a meaning."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def gapped(folder: Path) -> Path:
    """Ten axial planes without the fifth and sixth."""
    write_series(folder, Volume(made_bundle.made_volume(0, (20, 24, 10))[0], np.diag([-1.0, -1, 3, 1])))
    by_depth = sorted(folder.iterdir(), key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    for path in by_depth[4:6]:
        path.unlink()
    return folder


def tilted(folder: Path) -> Path:
    """Each plane shifted against the one before, as with a tilted gantry."""
    write_series(folder, Volume(made_bundle.made_volume(1, (20, 24, 8))[0], np.diag([-1.0, -1, 3, 1])))
    for path in folder.iterdir():
        ds = dcmread(path)
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, float(y) + 0.3 * float(z), z]
        ds.save_as(path)
    return folder


@pytest.mark.parametrize(("make", "code"), [(gapped, "GEOM_MISSING_SLICE"), (tilted, "GEOM_TILT")])
def test_each_plane_gets_the_labels_it_gets_alone(make, code: str, bundle: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = make(tmp_path / "in")
    with pytest.raises(SeriesError) as caught:
        read_series(source)
    assert caught.value.code == code
    nifti = predict_files(source, bundle, tmp_path / "nifti", **OPTIONS)  # type: ignore[arg-type]
    assert [error.code for error in nifti.failed.values()] == [code]
    report = predict_files(source, bundle, tmp_path / "seg", output_format="seg", measures=True, **OPTIONS)  # type: ignore[arg-type]
    assert not report.failed
    (path,) = report.written.values()
    planes, found = read_planes(source), read_seg(path)
    even = Volume(planes.array, np.diag([-1.0, -1, 3, 1]))
    expected = load_bundle(bundle).predict(even).label_map
    assert np.count_nonzero(expected) > 100
    assert np.count_nonzero(found.label_map) == np.count_nonzero(expected)
    for k in range(len(planes)):
        apart = np.linalg.norm(found.affines_ras[:, :3, 3] - planes.affines_ras[k][:3, 3], axis=1)
        if expected[..., k].any():  # a SEG leaves out empty frames
            assert apart.min() < 1e-3
            np.testing.assert_array_equal(found.label_map[..., int(np.argmin(apart))], expected[..., k])
    rows = json.loads((tmp_path / "seg" / "measures.json").read_text(encoding="utf-8"))
    assert {row["volume_ml"] for row in rows} == {None}  # nobody knows what lies between the planes
    again = predict_files(source, bundle, tmp_path / "seg", output_format="seg", **OPTIONS)  # type: ignore[arg-type]
    assert list(again.skipped.values()) == [path]


def test_bundles_that_need_more_than_single_planes_say_so(tmp_path: Path) -> None:
    source = gapped(tmp_path / "in")
    (series,) = find_series(source)
    for bundle, change, reason in (
        (find_bundle("hippocampus_mri"), None, "sees more than one plane"),
        (find_bundle("brain_tissue_t1"), {"spatial_dim": 0}, "cuts sagittal slices, the planes are axial"),
        (find_bundle("brain_tissue_t1"), {}, "it uses ResampleVolumed"),
    ):
        made = made_bundle.copied_bundle(bundle, tmp_path / reason[:6])
        config = made_bundle.read_config(made, "inference")
        config["inferer"] |= change or {}
        if change == {}:
            resample = {"_target_": "accunet_monai.transforms.ResampleVolumed", "keys": "image", "spacing": 2.0}
            config["preprocessing"]["transforms"].append(resample)
        made_bundle.write_config(made, "inference", config)
        report = predict_files(source, made, tmp_path / "out", output_format="seg", **OPTIONS)  # type: ignore[arg-type]
        (error,) = report.failed.values()
        assert error.code == "PLANES_UNFIT"
        assert reason in str(error)
        assert "GEOM_MISSING_SLICE" in str(error)
    assert series.problem is not None
