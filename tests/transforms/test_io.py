from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import decollate_batch
from monai.transforms.compose import Compose
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.post.dictionary import Invertd
from monai.transforms.spatial.dictionary import Orientationd, Spacingd
from monai.transforms.utility.dictionary import EnsureChannelFirstd
from PIL import Image

from accunet_monai.errors import VolumeError
from accunet_monai.transforms import LoadLabelMapd, LoadPictured, LoadVolumed, SaveLabelMapd
from accunet_monai.volumes import Volume, read_label_map, read_volume

LAS = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3.0, 7], [0, 0, 0, 1]])
PIR = np.array([[0, 0, 1.25, -11], [-0.8, 0, 0, 25], [0, -2.0, 0, 40], [0, 0, 0, 1.0]])
OBLIQUE = LAS.copy()
OBLIQUE[:3, :3] = np.array([[-1.9, 0.3, 0.2], [0.35, 1.4, -0.6], [0.1, 0.5, 2.8]])
AFFINES = {"las": LAS, "pir": PIR, "oblique": OBLIQUE}
SHAPE = (4, 5, 6)


@pytest.fixture(params=AFFINES.values(), ids=AFFINES.keys())
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An image whose voxels are all different, 0 to 119."""
    path = tmp_path / "case.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(SHAPE), request.param), path)
    return path


@pytest.fixture
def las(tmp_path: Path) -> Path:
    path = tmp_path / "las.nii"
    nib.save(nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(SHAPE), LAS), path)
    return path


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # an optional DICOM reader that MONAI registers anyway
def test_loads_as_monais_own_loader_does(source: Path) -> None:
    ours = LoadVolumed("image")({"image": source})["image"]
    theirs = Compose([LoadImaged("image", reader="NibabelReader"), EnsureChannelFirstd("image")])({"image": source})
    assert ours.dtype == torch.float32
    assert torch.equal(ours.as_tensor(), theirs["image"].as_tensor())
    assert torch.equal(ours.affine, theirs["image"].affine)
    assert ours.affine.dtype == torch.float64
    for key in ("original_affine", "spatial_shape"):
        np.testing.assert_array_equal(np.asarray(ours.meta[key]), np.asarray(theirs["image"].meta[key]))
    assert ours.meta["space"] == theirs["image"].meta["space"]
    assert ours.meta["filename_or_obj"] == str(source)


def test_the_channel_axis_is_not_added_twice(las: Path) -> None:
    loaded = Compose([LoadVolumed("image"), EnsureChannelFirstd("image")])({"image": las})["image"]
    assert loaded.shape == (1, *SHAPE)


def test_label_maps_are_uint8_and_wider_where_needed(tmp_path: Path, las: Path) -> None:
    assert LoadLabelMapd("label")({"label": las})["label"].dtype == torch.uint8
    nib.save(nib.Nifti1Image(np.arange(120, dtype=np.float32).reshape(SHAPE) * 10, LAS), tmp_path / "wide.nii")
    wide = LoadLabelMapd("label")({"label": tmp_path / "wide.nii"})["label"]
    assert wide.dtype == torch.int32
    assert int(wide.max()) == 1190
    with pytest.raises(VolumeError) as caught:
        LoadLabelMapd("label")({"label": Volume(np.full(SHAPE, 0.5), LAS)})
    assert caught.value.code == "LABEL_NOT_INTEGER"


def test_a_volume_object_loads_like_its_file_and_stays_unchanged(source: Path) -> None:
    volume = read_volume(source)
    ours = LoadVolumed("image")({"image": volume})["image"]
    assert torch.equal(ours, LoadVolumed("image")({"image": source})["image"])
    ours += 1000
    assert float(volume.array.max()) == 119
    assert LoadVolumed("image")({"image": Volume(volume.array, LAS)})["image"].meta["filename_or_obj"] == ""


def test_missing_keys(las: Path) -> None:
    with pytest.raises(KeyError):
        LoadVolumed(["image", "other"])({"image": las})
    assert set(LoadVolumed(["image", "other"], allow_missing_keys=True)({"image": las})) == {"image"}


def _post(pre: Compose, output_dir: Path) -> Compose:
    invert = Invertd("pred", transform=pre, orig_keys="image", nearest_interp=True, to_tensor=True)
    return Compose([invert, SaveLabelMapd("pred", output_dir)])


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR"])
def test_a_label_map_comes_back_to_every_voxel_of_its_file(source: Path, tmp_path: Path, axcodes: str) -> None:
    pre = Compose([LoadVolumed("image"), Orientationd("image", axcodes=axcodes, labels=None)])
    data = pre({"image": source})
    assert nib.aff2axcodes(data["image"].affine.numpy()) == tuple(axcodes)
    data["pred"] = data["image"].clone()  # a "network" that gives every voxel its own label
    done = _post(pre, tmp_path / "out")(data)
    written = tmp_path / "out" / "case_seg.nii.gz"
    assert done["pred"].meta["saved_to"] == str(written)
    np.testing.assert_array_equal(read_label_map(written).array, np.arange(120).reshape(SHAPE))
    np.testing.assert_array_equal(nib.load(written).affine, nib.load(source).affine)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_seg.nii.gz"]


def test_through_batches_and_resampling(source: Path, tmp_path: Path) -> None:
    pre = Compose(
        [
            LoadVolumed("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.0, 1.0, 1.0), mode="nearest"),
        ]
    )
    post = _post(pre, tmp_path / "out")
    for batch in DataLoader(Dataset([{"image": str(source)}], pre), batch_size=1):
        batch["pred"] = batch["image"].clone()
        for item in decollate_batch(batch):
            post(item)
    # resampled to finer voxels and back with nearest neighbours: most voxels find themselves, all of them the grid
    written = read_label_map(tmp_path / "out" / "case_seg.nii.gz")
    assert written.shape == SHAPE
    np.testing.assert_array_equal(written.affine_ras, read_volume(source).affine_ras)
    assert (written.array == np.arange(120).reshape(SHAPE)).mean() > 0.6


def test_a_label_map_that_was_not_inverted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cube.nii"  # a cube: its shape does not give the missing inversion away
    nib.save(nib.Nifti1Image(np.zeros((5, 5, 5), dtype=np.uint8), PIR), path)
    pre = Compose([LoadVolumed("pred"), Orientationd("pred", axcodes="RAS", labels=None)])
    with pytest.raises(VolumeError, match="mm away from its image") as caught:
        SaveLabelMapd("pred", tmp_path / "out")(pre({"pred": path}))
    assert caught.value.code == "LABEL_GRID"
    assert not (tmp_path / "out").exists()


def test_other_shapes_channels_and_values_are_refused(las: Path, tmp_path: Path) -> None:
    loaded = LoadVolumed("pred")({"pred": las})["pred"]
    save = SaveLabelMapd("pred", tmp_path / "out")
    for wrong, code in (
        (loaded[:, 1:], "LABEL_GRID"),
        (torch.cat([loaded, loaded]), "LABEL_GRID"),
        (loaded + 0.5, "LABEL_NOT_INTEGER"),
        (loaded - 1, "LABEL_NOT_INTEGER"),
        (loaded * torch.nan, "LABEL_NOT_INTEGER"),
        (loaded.as_tensor(), "LABEL_NO_SOURCE"),
        (MetaTensor(loaded.as_tensor(), affine=loaded.affine), "LABEL_NO_SOURCE"),
    ):
        with pytest.raises(VolumeError) as caught:
            save({"pred": wrong})
        assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_names_folders_and_two_sources_of_one_name(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "T1.w.nii.gz" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype=np.uint8), LAS), path)
    first, second = (LoadVolumed("pred")({"pred": path}) for path in paths)
    save = SaveLabelMapd("pred", tmp_path / "out", output_postfix="mask", separate_folder=True, output_ext=".nii")
    save(first)
    save(first)  # again is allowed
    assert (tmp_path / "out/T1.w/T1.w_mask.nii").is_file()
    with pytest.raises(VolumeError, match=r"T1\.w\.nii\.gz") as caught:
        save(second)
    assert caught.value.code == "OUTPUT_TAKEN"
    with pytest.raises(VolumeError) as caught:
        SaveLabelMapd("pred", tmp_path / "a", output_postfix="")(first)
    assert caught.value.code == "OUTPUT_TAKEN"


def test_saving_does_not_change_the_callers_data(las: Path, tmp_path: Path) -> None:
    data = LoadVolumed("pred")({"pred": las})
    saved = SaveLabelMapd("pred", tmp_path / "out")(data)
    assert "saved_to" not in data["pred"].meta
    assert torch.equal(saved["pred"], data["pred"])


def test_pictures_load_channel_first(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = LoadPictured("image", channels=3)({"image": tmp_path / "a.png"})["image"]
    np.testing.assert_array_equal(loaded.numpy(), np.moveaxis(pixels, -1, 0).astype(np.float32))
    assert loaded.meta["filename_or_obj"] == str(tmp_path / "a.png")
    with pytest.raises(VolumeError) as caught:
        LoadPictured("image", channels=1)({"image": tmp_path / "a.png"})
    assert caught.value.code == "PICTURE_CHANNELS"
