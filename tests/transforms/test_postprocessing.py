"""CleanLabelsd on MetaTensors, after Invertd, and in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from accunet_monai.bundle import load_bundle
from accunet_monai.errors import BundleError
from accunet_monai.transforms import CleanLabelsd
from accunet_monai.volumes import read_volume
from accunet_monai.volumes.cleaning import clean_labels
from tests import made_bundle
from tests.batch.tiny import images, tiny_bundle


def tensor(labels: np.ndarray, spacing: float = 1.0, dtype: torch.dtype = torch.uint8) -> MetaTensor:
    affine = torch.diag(torch.tensor([-spacing, spacing, spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(labels[None]).to(dtype), affine=affine, meta={"filename_or_obj": "a"})


def random_labels() -> np.ndarray:
    return np.random.default_rng(0).choice([0, 1, 2], size=(9, 10, 8), p=[0.7, 0.2, 0.1]).astype(np.uint8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_as_clean_labels_with_the_tensors_own_voxels(dtype: torch.dtype) -> None:
    labels = random_labels()
    clean = CleanLabelsd("pred", largest_component=[1], fill_holes=[1], minimum_volume_mm3={"2": 24})
    found = clean({"pred": tensor(labels, 2.0, dtype), "other": 1})["pred"]
    expected = clean_labels(labels, 8.0, largest_component=[1], fill_holes=[1], minimum_volume_mm3={2: 24})
    assert found.dtype == dtype
    assert found.meta["filename_or_obj"] == "a"
    np.testing.assert_array_equal(found.numpy()[0], expected)
    assert np.count_nonzero(expected != labels) > 10
    everywhere = CleanLabelsd("pred", minimum_volume_mm3=24)({"pred": tensor(labels, 2.0)})["pred"]
    expected = clean_labels(labels, 8.0, minimum_volume_mm3={1: 24, 2: 24})
    np.testing.assert_array_equal(everywhere.numpy()[0], expected)


def test_what_cannot_be_meant() -> None:
    arguments: list[dict[str, Any]] = [
        {"largest_component": [0]}, {"fill_holes": [-1]}, {"minimum_volume_mm3": -1}, {"minimum_volume_mm3": {0: 5}},
    ]  # fmt: skip
    for wrong in arguments:
        with pytest.raises(ValueError, match=r"labels start at 1|negative"):
            CleanLabelsd("pred", **wrong)
    for value in (torch.zeros(1, 3, 3, 3), tensor(random_labels())[0]):
        with pytest.raises(TypeError, match="MetaTensor"):
            CleanLabelsd("pred")({"pred": value})
    with pytest.raises(KeyError):
        CleanLabelsd("pred")({})
    assert CleanLabelsd("pred", allow_missing_keys=True)({}) == {}


def test_in_a_bundle_it_works_on_the_images_own_grid(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    (path,) = images(tmp_path / "in", 1)
    plain = load_bundle(bundle).predict(path).label_map
    config = made_bundle.read_config(bundle, "inference")
    clean = {"_target_": "accunet_monai.transforms.CleanLabelsd", "keys": "pred", "largest_component": [1, 2]}
    config["postprocessing"]["transforms"].append({**clean, "minimum_volume_mm3": {3: 5.0}})
    made_bundle.write_config(bundle, "inference", config)
    found = load_bundle(bundle).predict(path).label_map
    voxel = read_volume(path).voxel_volume_ml * 1000
    expected = clean_labels(plain, voxel, largest_component=[1, 2], minimum_volume_mm3={3: 5.0})
    np.testing.assert_array_equal(found, expected)
    assert np.count_nonzero(found != plain)
    config["postprocessing"]["transforms"][-1]["largest_component"] = [0]
    made_bundle.write_config(bundle, "inference", config)
    with pytest.raises(BundleError, match="BUNDLE_INVALID"):
        load_bundle(bundle)
