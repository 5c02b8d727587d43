"""Maps of shares in NIfTI: bytes with a scale factor, on the image's own grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from accunet_monai.errors import VolumeError
from accunet_monai.volumes import read_volume
from accunet_monai.volumes.nifti import write_share_map
from tests.volumes.made import PIR, save


def test_other_readers_get_the_shares(tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "image.nii", np.zeros((4, 5, 6), np.int16), PIR))
    shares = np.linspace(0, 1, 120, dtype=np.float32).reshape(4, 5, 6)
    for name in ("a.nii", "a.nii.gz"):
        stored = nib.load(write_share_map(tmp_path / name, shares, image, "shares"))
        assert stored.get_data_dtype() == np.uint8
        np.testing.assert_allclose(stored.get_fdata(), shares, atol=0.5 / 255 + 1e-6)
        np.testing.assert_array_equal(stored.affine, image.affine_ras)
        np.testing.assert_allclose(read_volume(tmp_path / name).array, shares, atol=0.5 / 255 + 1e-6)
        assert stored.header["sform_code"] == 2
        assert stored.header["cal_max"] == 1
    assert (tmp_path / "a.nii").stat().st_size == 352 + shares.size


def test_what_is_no_map_of_shares(tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "image.nii", np.zeros((4, 5, 6), np.int16)))
    good = np.full((4, 5, 6), 0.5)
    for code, name, shares in (
        ("SHARE_RANGE", "a.nii", good + 0.6),
        ("SHARE_RANGE", "a.nii", good - 0.6),
        ("SHARE_RANGE", "a.nii", np.where(good > 0, np.nan, good)),
        ("LABEL_GRID", "a.nii", good[1:]),
        ("NIFTI_NAME", "a.png", good),
    ):
        with pytest.raises(VolumeError) as caught:
            write_share_map(tmp_path / name, shares, image)
        assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["image.nii"]
    path = write_share_map(tmp_path / "a.nii", good, image)
    with pytest.raises(VolumeError, match="FILE_EXISTS"):
        write_share_map(path, good, image, overwrite=False)
