"""DICOM through the transforms: the same series of steps as NIfTI, out as NIfTI or DICOM SEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.utils import decollate_batch
from monai.transforms.compose import Compose
from monai.transforms.post.dictionary import Invertd

from accunet_monai.bundle import find_bundle
from accunet_monai.errors import SeriesError, VolumeError
from accunet_monai.transforms import LoadVolumed, OrientVolumed, ResampleVolumed, SaveLabelMapd
from accunet_monai.transforms.source import DICOM_SOURCE, source_grid
from accunet_monai.volumes import Volume, find_series, read_label_map, read_series, read_volume, series_name
from accunet_monai.volumes.dicom_seg_read import read_seg
from tests.volumes.made import AFFINES, ramp, save
from tests.volumes.nifti_as_dicom import write_series

SEGMENTS = find_bundle("hippocampus_mri") / "configs" / "segments.yaml"


@pytest.fixture(params=AFFINES.values(), ids=AFFINES.keys())
def series(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_series(tmp_path / "series", Volume(ramp(), request.param))
    return tmp_path / "series"


def test_a_folder_a_series_and_a_volume_load_alike(series: Path) -> None:
    volume = read_series(series)
    loaded = [LoadVolumed("x")({"x": source})["x"] for source in (series, str(series), find_series(series)[0], volume)]
    for tensor in loaded:
        np.testing.assert_array_equal(tensor[0].numpy(), volume.array)
        np.testing.assert_array_equal(tensor.affine.numpy(), volume.affine_ras)
        assert tensor.meta["filename_or_obj"] == str(series)
        grid = source_grid(tensor, series)
        assert grid.provenance["dicom"] == volume.provenance["dicom"]
        np.testing.assert_array_equal(grid.affine_ras, volume.affine_ras)


def test_a_series_among_others_is_named_by_its_uid(tmp_path: Path) -> None:
    volumes = {"a": Volume(ramp(), AFFINES["las"]), "b": Volume(ramp() + 9, AFFINES["las"])}
    uids = [write_series(tmp_path / name, volume, name) for name, volume in volumes.items()]
    with pytest.raises(SeriesError) as caught:
        LoadVolumed("x")({"x": tmp_path})
    assert caught.value.code == "SERIES_AMBIGUOUS"
    assert float(LoadVolumed("x", series_uid=uids[1])({"x": tmp_path})["x"].min()) == 9
    with pytest.raises(SeriesError) as caught:
        LoadVolumed("x", series_uid=uids[1])({"x": save(tmp_path / "a.nii", ramp())})
    assert caught.value.code in ("SERIES_NONE", "NOT_DICOM")


@pytest.mark.parametrize("ending", [".nii.gz", ".dcm"])
def test_labels_of_a_series_go_back_to_its_own_planes(series: Path, tmp_path: Path, ending: str) -> None:
    pre = Compose([LoadVolumed("image"), OrientVolumed("image", "RAS"), ResampleVolumed("image", 0)])
    post = Compose([
        Invertd("pred", transform=pre, orig_keys="image"),
        SaveLabelMapd("pred", tmp_path / "out", output_ext=ending, segments=SEGMENTS),
    ])  # fmt: skip
    for batch in DataLoader(Dataset([{"image": str(series)}], pre), batch_size=1):
        batch["pred"] = (batch["image"].round() // 7 % 3).to(torch.uint8)  # every label on every slice
        (item,) = decollate_batch(batch)
        saved = post(item)["pred"]
    volume = read_series(series)
    target = tmp_path / "out" / f"{series_name(volume.provenance['dicom'])}_seg{ending}"
    assert saved.meta["saved_to"] == str(target)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [target.name]
    stored = read_seg(target).volume() if ending == ".dcm" else read_label_map(target)
    for index in np.ndindex(volume.shape):  # each voxel's label is where the voxel is
        place = np.linalg.inv(stored.affine_ras) @ volume.affine_ras @ (*index, 1)
        assert stored.array[tuple(np.rint(place[:3]).astype(int))] == volume.array[index] // 7 % 3


def test_labels_in_another_orientation_are_refused(series: Path, tmp_path: Path) -> None:
    pre = Compose([LoadVolumed("pred"), OrientVolumed("pred", "LSP")])
    with pytest.raises(VolumeError) as caught:
        SaveLabelMapd("pred", tmp_path / "out", output_ext=".dcm", segments=SEGMENTS)(pre({"pred": series}))
    assert caught.value.code == "LABEL_GRID"
    assert not (tmp_path / "out").exists()


def test_seg_needs_segments_and_a_dicom_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="segments"):
        SaveLabelMapd("pred", tmp_path, output_ext=".dcm")
    loaded = LoadVolumed("pred")({"pred": save(tmp_path / "a.nii", ramp() % 3)})
    assert loaded["pred"].meta[DICOM_SOURCE] == ""
    with pytest.raises(VolumeError) as caught:
        SaveLabelMapd("pred", tmp_path / "out", output_ext=".dcm", segments=SEGMENTS)(loaded)
    assert caught.value.code == "SEG_NO_SOURCE"


def test_the_choices_of_reading_are_those_of_saving(tmp_path: Path) -> None:
    four = save(tmp_path / "four.nii", ramp((4, 5, 6, 2)) % 3)
    load, save_it = LoadVolumed("x", time_point=1), SaveLabelMapd("x", tmp_path / "out")
    save_it(load({"x": four}))
    np.testing.assert_array_equal(
        read_label_map(tmp_path / "out" / "four_seg.nii.gz").array, (ramp((4, 5, 6, 2)) % 3)[..., 1]
    )
    with pytest.raises(VolumeError) as caught:
        save_it(LoadVolumed("x", time_point=0)({"x": four}))
    assert caught.value.code == "OUTPUT_TAKEN"
    mirrored = save(tmp_path / "m.nii", ramp() % 3, srow_x=[2, 0, 0, -30])
    with pytest.raises(VolumeError, match="NIFTI_FORMS"):
        LoadVolumed("x")({"x": mirrored})
    loaded = LoadVolumed("x", form="qform")({"x": mirrored})
    save_it(loaded)
    found = read_volume(tmp_path / "out" / "m_seg.nii.gz", form="qform")
    np.testing.assert_array_equal(found.affine_ras, read_volume(mirrored, form="qform").affine_ras)


def test_nonfinite_voxels_on_request(tmp_path: Path) -> None:
    array = ramp(dtype=np.float32)
    array[0, 0, 0] = np.nan
    path = save(tmp_path / "a.nii", array)
    assert float(LoadVolumed("x", fill_nonfinite=-1)({"x": path})["x"][0, 0, 0, 0]) == -1
