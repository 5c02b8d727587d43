"""Orientation and resampling as dictionary transforms: inverses land on the grid the tensor had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import decollate_batch
from monai.transforms.compose import Compose
from monai.transforms.post.dictionary import Invertd
from monai.transforms.spatial.dictionary import Orientationd

from accunet_monai.errors import VolumeError
from accunet_monai.transforms import LoadLabelMapd, LoadVolumed, OrientVolumed, ResampleVolumed, SaveLabelMapd
from accunet_monai.volumes import Volume, grid_of_spacing, read_label_map, resample, resample_label_map
from accunet_monai.volumes.resampling import LabelInterpolation
from tests.volumes.made import AFFINES, oblique, save

SHAPE = (12, 10, 9)


def labels() -> np.ndarray:
    """Two blocks side by side, one at the border."""
    result = np.zeros(SHAPE, np.uint8)
    result[2:7, 2:8, 3:9] = 1
    result[7:11, 2:8, 3:9] = 2
    return result


@pytest.fixture(params=AFFINES.values(), ids=AFFINES.keys())
def files(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    image = (100 * labels() + np.random.default_rng(0).normal(size=SHAPE)).astype(np.float32)
    return {
        "image": save(tmp_path / "case.nii.gz", image, request.param),
        "label": save(tmp_path / "label.nii.gz", labels(), request.param),
    }


def pipeline(spacing: float | tuple[float, ...]) -> Compose:
    return Compose([
        LoadVolumed("image"),
        LoadLabelMapd("label"),
        OrientVolumed(["image", "label"], "SPR"),
        ResampleVolumed(["image", "label"], spacing, interpolation=["linear", "label_linear"]),
    ])  # fmt: skip


def test_orients_as_monai_does(files: dict[str, Path]) -> None:
    loaded = LoadVolumed("image")({"image": files["image"]})
    ours, theirs = OrientVolumed("image", "PIR")(loaded), Orientationd("image", "PIR", labels=None)(loaded)
    assert torch.equal(ours["image"], theirs["image"])
    assert torch.equal(ours["image"].affine, theirs["image"].affine)


@pytest.mark.parametrize("spacing", [1.0, (0.8, 2.0, 1.3)])
def test_image_and_label_map_go_to_one_grid_and_come_back(
    files: dict[str, Path], tmp_path: Path, spacing: float | tuple[float, ...]
) -> None:
    pre = pipeline(spacing)
    data = pre(dict(files))
    volume, label_map = Volume(*stored(files["image"])), Volume(*stored(files["label"]))
    grid = grid_of_spacing(volume.reoriented("SPR"), spacing)
    for key, expected in (
        ("image", resample(volume.reoriented("SPR"), grid).array),
        ("label", resample_label_map(label_map.reoriented("SPR"), grid).array),
    ):
        np.testing.assert_allclose(data[key][0].numpy(), expected, atol=1e-4)
        np.testing.assert_allclose(data[key].affine.numpy(), grid.affine_ras, atol=1e-9)
    assert data["label"].dtype == torch.uint8
    data["pred"] = data["label"].clone()
    done = Compose([
        Invertd("pred", transform=pre, orig_keys="image", nearest_interp=True),
        SaveLabelMapd("pred", tmp_path / "out"),
    ])(data)  # fmt: skip
    assert done["pred"].dtype == torch.uint8
    written = read_label_map(tmp_path / "out" / "case_seg.nii.gz")
    np.testing.assert_array_equal(written.affine_ras, volume.affine_ras)
    expected = resample_label_map(Volume(data["label"][0].numpy(), grid.affine_ras), volume).array
    np.testing.assert_array_equal(written.array, expected)
    assert np.count_nonzero(written.array != labels()) <= 0.1 * written.array.size
    assert set(np.unique(written.array)) == {0, 1, 2}


def stored(path: Path) -> tuple[np.ndarray, np.ndarray]:
    loaded = LoadVolumed("x")({"x": path})["x"]
    array = loaded[0].numpy()
    return (array.astype(np.uint8) if "label" in path.name else array), loaded.affine.numpy()


def test_probabilities_are_inverted_linearly_and_the_choice_of_labels_by_shares_agrees(files: dict[str, Path]) -> None:
    pre = pipeline(0.9)
    data = pre(dict(files))
    one_hot = torch.nn.functional.one_hot(data["label"][0].as_tensor().long(), 3).permute(3, 0, 1, 2).float()
    data["pred"] = MetaTensor(one_hot)
    back = Invertd("pred", transform=pre, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert back.shape == (3, *SHAPE)
    assert float((back.sum(0) - 1).abs().max()) < 1e-5
    data["pred"] = data["label"].clone()
    label_map = Invertd("pred", transform=pre, orig_keys="image", nearest_interp=True)(data)["pred"]
    assert torch.count_nonzero(back.argmax(0) != label_map[0]) <= 3  # where shares are equal


@pytest.mark.parametrize("interpolation", ["label_linear", "nearest"])
def test_the_way_back_of_label_maps_can_be_chosen(files: dict[str, Path], interpolation: LabelInterpolation) -> None:
    pre = Compose([LoadVolumed("image"), ResampleVolumed("image", 1.9, label_interpolation=interpolation)])
    data = pre({"image": files["image"]})
    noise = np.random.default_rng(0).integers(0, 3, data["image"].shape).astype(np.uint8)
    data["pred"] = MetaTensor(torch.from_numpy(noise))
    back = Invertd("pred", transform=pre, orig_keys="image")(data)["pred"]
    coarse, volume = Volume(noise[0], data["image"].affine.numpy()), Volume(*stored(files["image"]))
    expected = {name: resample_label_map(coarse, volume, name).array for name in ("label_linear", "nearest")}  # type: ignore[arg-type]
    np.testing.assert_array_equal(back[0].numpy(), expected[interpolation])
    assert not np.array_equal(*expected.values())


def test_the_inverse_of_a_bspline_of_labels_is_not_a_bspline(files: dict[str, Path]) -> None:
    pre = Compose([LoadVolumed("image"), ResampleVolumed("image", 1.1, interpolation="bspline")])
    data = pre({"image": files["image"]})
    data["pred"] = (data["image"] > 50).to(torch.uint8)
    back = Invertd("pred", transform=pre, orig_keys="image", nearest_interp=True)(data)["pred"]
    assert set(back.unique().tolist()) == {0, 1}


def test_through_a_data_loader_and_several_channels(files: dict[str, Path]) -> None:
    pre = pipeline(1.5)
    for batch in DataLoader(Dataset([{name: str(path) for name, path in files.items()}], pre), batch_size=1):
        batch["pred"] = batch["label"].clone()
        (item,) = decollate_batch(batch)
        back = Invertd("pred", transform=pre, orig_keys="image")(item)["pred"]
        assert back.shape == (1, *SHAPE)
    two = torch.cat([LoadVolumed("image")(files)["image"]] * 2)
    two[1] *= -1
    both = ResampleVolumed("x", 1.0)({"x": two})["x"]
    assert torch.allclose(both[0], -both[1], atol=1e-3)


def test_a_transform_of_several_keys_passes_over_the_missing_one(files: dict[str, Path]) -> None:
    loaded = LoadVolumed("image")({"image": files["image"]})
    resampler = ResampleVolumed(["image", "label"], 1.0, ["linear", "nearest"], allow_missing_keys=True)
    assert set(resampler(loaded)) == {"image"}


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="interpolation"):
        ResampleVolumed("image", 1.0, interpolation="cubic")
    with pytest.raises(TypeError, match="LoadVolumed"):
        ResampleVolumed("image", 1.0)({"image": torch.zeros(1, 3, 3, 3)})
    image = LoadVolumed("image")({"image": save(tmp_path / "a.nii", np.full((3, 3, 3), 0.5, np.float32), oblique())})
    with pytest.raises(VolumeError) as caught:
        ResampleVolumed("image", 1.0, interpolation="label_linear")(image)
    assert caught.value.code == "LABEL_NOT_INTEGER"
    with pytest.raises(VolumeError) as caught:
        ResampleVolumed("image", 0.001)(image)
    assert caught.value.code == "VOLUME_TOO_LARGE"
