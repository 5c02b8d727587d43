"""Images of several channels and regions that overlap: from the dataset through plan and training to label maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from accunet_monai.bundle import load_bundle, read_literal_sections
from accunet_monai.datasets import labelled_cases, list_dataset
from accunet_monai.errors import DatasetError
from accunet_monai.planning import plan_dataset
from accunet_monai.planning.examination import examine
from accunet_monai.training import SliceDataset
from accunet_monai.volumes import read_label_map
from accunet_monai.workflow import run_config
from tests.planning import made

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
OWN = {"width": 2, "batch_size": 4, "max_epochs": 1, "context_slices": 1}


def planned(dataset: Path, folder: Path) -> Path:
    return plan_dataset(dataset, folder / "bundle", memory_gib=1, own=OWN, console=Console(quiet=True))


@pytest.mark.parametrize("make", [made.regions, made.four_dimensional])
def test_a_plan_trains_and_its_weights_give_label_maps(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    dataset = make(tmp_path / "data")
    with_regions = make is made.regions
    bundle = planned(dataset, tmp_path)
    sections = read_literal_sections(bundle)
    assert sections["network_def"]["in_channels"] == 2 * 3
    assert sections["network_def"]["out_channels"] == (3 if with_regions else 4)
    assert sections["inferer"].get("regions") == ([1, 2, 3] if with_regions else None)
    batch = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())["train"]["trainer"]["prepare_batch"]
    assert batch.get("regions") == ([[1, 2, 3], [2, 3], [3]] if with_regions else None)

    run_config(bundle, "train", {"runs_dir": str(tmp_path / "runs")})
    weights = tmp_path / "runs" / "bundle" / "best.safetensors"
    predictor = load_bundle(bundle, weights)
    case = labelled_cases(dataset)[0]
    prediction = predictor.predict(case["image"])
    logits = torch.from_numpy(_logits(predictor, case))
    if with_regions:  # a sigmoid each, the later ones on top
        expected = torch.zeros(made.SHAPE, dtype=torch.int64)
        for label in (1, 2, 3):
            expected[torch.sigmoid(logits[label - 1]) > 0.5] = label
    else:
        expected = logits.argmax(0)
    np.testing.assert_array_equal(prediction.label_map, expected)

    values = {"output_dir": str(tmp_path / "maps"), "weights": str(weights)}
    run_config(bundle, "inference", values)
    stem = Path(case["image"]).name.removesuffix(".nii.gz")
    found = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert len(found) == 3  # one for each case, however many files it has
    written = read_label_map(tmp_path / "maps" / found[0])
    assert found[0].startswith(stem)
    np.testing.assert_array_equal(written.array, prediction.label_map)
    run_config(bundle, "evaluate", {"output_dir": str(tmp_path / "measured"), "weights": str(weights)})
    assert (tmp_path / "measured" / "review.html").is_file()


def _logits(predictor: Any, case: dict[str, str]) -> np.ndarray:
    """The network on each slice with its neighbours, put together by hand from the preprocessed image."""
    image = predictor.preprocessing({"image": case["image"]})["image"].as_tensor()
    assert image.shape == (2, *made.SHAPE)
    torch.testing.assert_close(image.mean((1, 2, 3)), torch.zeros(2), atol=1e-3, rtol=0)  # each channel for itself
    inferer = predictor.inferer
    axis, size = inferer.spatial_dim, inferer.roi_size
    slices = SliceDataset(
        [{"image": image, "label": np.zeros((1, *made.SHAPE), np.uint8)}],
        dict,
        size,
        axis,
        context_slices=1,
        progress=False,
    )
    with torch.inference_mode():
        batch = torch.stack([slices[number]["image"] for number in range(len(slices))])
        logits = predictor.network.eval()(batch)
    plane = [length for number, length in enumerate(made.SHAPE) if number != axis]
    starts = [(wanted - length) // 2 for wanted, length in zip(logits.shape[2:], plane, strict=True)]
    cut = logits[:, :, starts[0] : starts[0] + plane[0], starts[1] : starts[1] + plane[1]]
    return np.moveaxis(cut.numpy(), 0, axis + 1)


def test_channels_that_do_not_fit_are_all_told(tmp_path: Path) -> None:
    dataset = made.regions(tmp_path, cases=4)
    images = dataset / "imagesTr"
    shifted = np.diag([1.0, 1, 1, 1])
    shifted[0, 3] = 3
    made.save(images / "made_000_0001.nii.gz", made.tumours(0)[0][1], affine=shifted)
    (images / "made_001_0001.nii.gz").unlink()
    broken = made.tumours(2)[0][1]
    broken[3, 3, 3] = np.nan
    made.save(images / "made_002_0001.nii.gz", broken)
    with pytest.raises(DatasetError) as caught:
        examine(list_dataset(dataset))
    told = str(caught.value)
    for problem in ("[VOLUME_CHANNELS] made_000", "[FILE_MISSING] made_001", "[VOLUME_NONFINITE] made_002"):
        assert problem in told
    assert "made_003" not in told


def test_a_file_of_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    dataset = made.four_dimensional(tmp_path)
    images, _ = made.tumours(0)
    made.save(dataset / "imagesTr" / "brain_0.nii.gz", np.stack([*images, images[0]], -1))
    made.save(dataset / "imagesTr" / "brain_1.nii.gz", images[0])
    with pytest.raises(DatasetError) as caught:
        examine(list_dataset(dataset))
    told = str(caught.value)
    assert "[VOLUME_CHANNELS] brain_0: brain_0.nii.gz: more than 2 volumes" in told
    assert "[VOLUME_CHANNELS] brain_1: brain_1.nii.gz: 2 channels are needed" in told


def test_a_region_of_undeclared_values_is_told(tmp_path: Path) -> None:
    dataset = made.regions(tmp_path)
    described = json.loads((dataset / "dataset.json").read_text())
    described["labels"] = {"background": 0, "whole tumour": [1, 2], "core": [2]}
    described["regions_class_order"] = [1, 2]
    (dataset / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(DatasetError, match=r"LABEL_UNDECLARED.*label value 3"):
        examine(list_dataset(dataset))
