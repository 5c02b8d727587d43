"""Images of several channels: one 4D file, or nnU-Net's files beside each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from accunet_monai.bundle import image_cases
from accunet_monai.errors import VolumeError
from accunet_monai.transforms import LoadVolumed, SaveLabelMapd
from accunet_monai.volumes import Volume, channel_files, first_channels, read_channels, read_first_channel

SHAPE = (3, 4, 5)
AFFINE = np.array([[0.0, 2, 0, 1], [1, 0, 0, 2], [0, 0, 3, 4], [0, 0, 0, 1]])


def arrays(count: int = 3) -> list[np.ndarray]:
    return [np.arange(60, dtype=np.float32).reshape(SHAPE) + 100 * number for number in range(count)]


def as_files(folder: Path, count: int = 3) -> Path:
    for number, array in enumerate(arrays(count)):
        nib.save(nib.Nifti1Image(array, AFFINE), folder / f"brain_{number:04}.nii.gz")
    return folder / "brain_0000.nii.gz"


def as_one_file(folder: Path, count: int = 3) -> Path:
    nib.save(nib.Nifti1Image(np.stack(arrays(count), -1), AFFINE), folder / "brain.nii.gz")
    return folder / "brain.nii.gz"


@pytest.mark.parametrize("write", [as_files, as_one_file])
def test_channels_are_those_that_another_reader_finds(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    if write is as_one_file:
        theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))  # (channel, Z, Y, X)
    else:
        files = [str(tmp_path / f"brain_000{number}.nii.gz") for number in range(3)]
        theirs = np.stack([SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)) for file in files])
    volumes = read_channels(path, 3)
    np.testing.assert_array_equal(np.stack([volume.array for volume in volumes]), np.transpose(theirs, (0, 3, 2, 1)))
    assert all(np.allclose(volume.affine_ras, AFFINE) for volume in volumes)
    first = read_first_channel(path, 3)
    np.testing.assert_array_equal(first.array, arrays()[0])
    for source in (str(path), path, first):
        tensor = LoadVolumed("image", channels=3)({"image": source})["image"]
        np.testing.assert_array_equal(np.asarray(tensor), np.stack(arrays()))
    label = tensor[:1] > 30
    saved = SaveLabelMapd("pred", tmp_path / "out")({"pred": label.byte()})["pred"].meta["saved_to"]
    np.testing.assert_array_equal(np.asarray(nib.load(saved).dataobj), arrays()[0] > 30)
    np.testing.assert_allclose(nib.load(saved).affine, AFFINE)


def test_a_folder_of_channels_has_one_image_for_each_case(tmp_path: Path) -> None:
    first = as_files(tmp_path)
    (tmp_path / "left_0001.nii.gz").write_bytes(first.read_bytes())  # the number is part of its name: no 0000 is there
    every = sorted(tmp_path.iterdir())
    assert first_channels(every) == [first, tmp_path / "left_0001.nii.gz"]
    assert [Path(case["image"]).name for case in image_cases(tmp_path, channels=3)] == [
        "brain_0000.nii.gz",
        "left_0001.nii.gz",
    ]
    assert len(image_cases(tmp_path)) == 4
    assert channel_files(first, 1) == [first]


def test_other_channels_than_asked_for_are_refused(tmp_path: Path) -> None:
    whole, parts = as_one_file(tmp_path), as_files(tmp_path, 2)
    for path, channels, told in ((whole, 2, "more than 2"), (whole, 4, "the file has 3"), (parts, 3, "brain_0002")):
        with pytest.raises(VolumeError, match=told) as caught:
            read_channels(path, channels)
        assert caught.value.code == "VOLUME_CHANNELS"
    moved = AFFINE.copy()
    moved[2, 3] += 1
    nib.save(nib.Nifti1Image(arrays()[1], moved), tmp_path / "brain_0001.nii.gz")
    with pytest.raises(VolumeError, match="channel 1 is not on the grid") as caught:
        read_channels(parts, 2)
    assert caught.value.code == "VOLUME_CHANNELS"
    with pytest.raises(VolumeError, match="one volume without a file") as caught:
        LoadVolumed("image", channels=2)({"image": Volume(arrays()[0], AFFINE)})
    assert caught.value.code == "VOLUME_CHANNELS"
    with pytest.raises(ValueError, match="not both"):
        LoadVolumed("image", channels=2, time_point=1)
