"""The memory a run will take, told before it starts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from accunet_monai.batch import explain_memory
from accunet_monai.bundle import Predictor
from accunet_monai.errors import BundleError
from accunet_monai.inferers import SliceInferer, estimate
from accunet_monai.volumes import Volume
from tests import made_bundle
from tests.batch.tiny import broken_images, images, tiny_bundle
from tests.volumes.nifti_as_dicom import write_series


def test_from_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(tmp_path)
    (path,) = images(tmp_path / "in", 1, (24, 20, 6))
    (broken,) = broken_images(tmp_path / "in", 1)
    affine = np.array([[0, 0, 2.0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    write_series(tmp_path / "in" / "dicom", Volume(made_bundle.made_volume(0, (10, 20, 18))[0], affine))
    write_series(tmp_path / "in" / "gap", Volume(made_bundle.made_volume(1, (10, 20, 18))[0], affine), "gap")
    sorted((tmp_path / "in" / "gap").iterdir())[7].unlink()
    monkeypatch.setattr(Predictor, "prepare", None)  # nothing is read
    text = io.StringIO()
    found = explain_memory(tmp_path / "in", bundle, Console(file=text, width=200))
    inferer = SliceInferer(spatial_dim=2, sw_batch_size=8)
    assert found[path] == estimate(inferer, (1, 1, 24, 20, 6), 4).added + 3 * 2 * 4 * 24 * 20 * 6
    assert broken not in found
    assert "24 × 20 × 6" in text.getvalue()
    assert "18 × 10 × 20" in text.getvalue()  # in RAS
    assert "fails: NIFTI_UNREADABLE" in text.getvalue()
    assert "fails: GEOM_MISSING_SLICE" in text.getvalue()
    assert len(found) == 2


def test_the_grid_that_the_bundle_resamples_to(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    images(tmp_path / "in", 1, (24, 20, 6))
    config = made_bundle.read_config(bundle, "inference")
    resample = {"_target_": "accunet_monai.transforms.ResampleVolumed", "keys": "image", "spacing": [2.0, 1.0, 0.5]}
    config["preprocessing"]["transforms"].append(resample)
    made_bundle.write_config(bundle, "inference", config)
    text = io.StringIO()
    explain_memory(tmp_path / "in", bundle, Console(file=text, width=200))
    assert "12 × 20 × 12" in text.getvalue()


def test_pictures_have_none(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="BUNDLE_PICTURES"):
        explain_memory(tmp_path, made_bundle.picture_bundle(tmp_path))
