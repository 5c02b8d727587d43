"""Folders of files: what can be segmented is, what cannot is named with its reason, and nothing is overwritten."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from accunet_monai import batch
from accunet_monai.batch import predict_files
from accunet_monai.bundle import load_bundle
from accunet_monai.errors import BundleError
from accunet_monai.volumes import read_label_map, read_volume
from tests import made_bundle

NAME = "hippocampus_mri"
REFUSED = {
    "corrupt.nii.gz": "NIFTI_UNREADABLE",
    "empty.nii": "NIFTI_EMPTY",
    "four_d.nii.gz": "VOLUME_NOT_3D",
    "infinite.nii.gz": "VOLUME_NONFINITE",
    "rgb.nii.gz": "VOLUME_RGB",
    "truncated.nii.gz": "NIFTI_TRUNCATED",
}


def mixed_folder(folder: Path) -> Path:
    """Two good volumes, each kind of bad one, and files that are none."""
    image = made_bundle.made_volume(0)[0]
    oblique = np.array([[0.9, 0.1, 0, -4], [-0.1, 1.1, 0, 7], [0, 0, -1.2, 3], [0, 0, 0, 1]])
    made_bundle.save_volume(folder / "a[good].nii.gz", image)
    made_bundle.save_volume(folder / "z.good.nii", image, oblique)
    made_bundle.save_volume(folder / "four_d.nii.gz", np.stack([image, image], 3))
    infinite = image.astype(np.float32)
    infinite[1, 2, 3] = np.inf
    made_bundle.save_volume(folder / "infinite.nii.gz", infinite)
    rgb = np.zeros(image.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    made_bundle.save_volume(folder / "rgb.nii.gz", rgb)
    whole = gzip.decompress((folder / "a[good].nii.gz").read_bytes())
    (folder / "truncated.nii.gz").write_bytes(gzip.compress(whole[: len(whole) // 2]))
    (folder / "corrupt.nii.gz").write_bytes(np.random.default_rng(0).bytes(3000))
    (folder / "empty.nii").touch()
    (folder / "notes.txt").write_text("not an image", encoding="utf-8")
    (folder / ".hidden.nii").touch()
    (folder / "sub").mkdir()
    return folder


def recorded() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200), text


def test_bad_files_are_reported_and_the_others_are_segmented(tmp_path: Path) -> None:
    source, output = mixed_folder(tmp_path / "in"), tmp_path / "out" / "deep"
    console, text = recorded()
    report = predict_files(source, NAME, output, overlay=True, device="cpu", console=console)
    assert {path.name: error.code for path, error in report.failed.items()} == REFUSED
    assert {path.name: target.name for path, target in report.written.items()} == {
        "a[good].nii.gz": "a[good]_seg.nii.gz",
        "z.good.nii": "z.good_seg.nii.gz",
    }
    for path, error in report.failed.items():
        assert error.path == str(path)
        lines = [line for line in text.getvalue().splitlines() if str(path) in line]
        assert len(lines) == 1  # one line each, with the path once
        assert lines[0].count(str(path)) == 1
        assert f"[{error.code}]" in lines[0]
        assert error.message in lines[0]
    assert sorted(path.name for path in output.iterdir()) == [
        "a[good]_overlay.png", "a[good]_seg.nii.gz", "z.good_overlay.png", "z.good_seg.nii.gz",
    ]  # fmt: skip
    predictor = load_bundle(NAME)
    for image, label_map in report.written.items():
        stored = read_label_map(label_map)
        np.testing.assert_array_equal(stored.array, predictor.predict(image).label_map)
        np.testing.assert_array_equal(stored.affine_ras, read_volume(image).affine_ras)
        assert NAME.encode() in nib.load(label_map).header["descrip"].item()
        with Image.open(output / f"{label_map.name.removesuffix('_seg.nii.gz')}_overlay.png") as picture:
            assert np.ptp(np.asarray(picture)) > 100


def test_results_do_not_go_among_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made_bundle.save_volume(tmp_path / "in" / "a.nii", made_bundle.made_volume(0)[0])
    monkeypatch.chdir(path.parent)
    for source, output in ((path.parent, path.parent), (path, "."), (path.parent, tmp_path / "in" / ".." / "in")):
        with pytest.raises(BundleError) as caught:
            predict_files(source, NAME, output, device="cpu")
        assert caught.value.code == "OUTPUT_TAKEN"
    assert [item.name for item in path.parent.iterdir()] == ["a.nii"]


def test_two_files_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    first = made_bundle.save_volume(tmp_path / "in" / "a.nii", made_bundle.made_volume(0)[0])
    second = made_bundle.save_volume(tmp_path / "in" / "a.nii.gz", made_bundle.made_volume(1)[0])
    report = predict_files(tmp_path / "in", NAME, tmp_path / "out", device="cpu", console=recorded()[0])
    assert list(report.written) == [first]
    assert report.failed[second].code == "OUTPUT_TAKEN"
    stored = read_label_map(report.written[first]).array
    np.testing.assert_array_equal(stored, load_bundle(NAME).predict(first).label_map)


def test_what_nobody_thought_of_stops_one_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        made_bundle.save_volume(tmp_path / "in" / f"{name}.nii", made_bundle.made_volume(0)[0])
    write = batch.write_label_map

    def full_disk(path: Path, *args: object, **kwargs: object) -> object:
        if path.name.startswith("a_"):
            raise OSError("No space left on device")
        return write(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "write_label_map", full_disk)
    report = predict_files(tmp_path / "in", NAME, tmp_path / "out", device="cpu", console=recorded()[0])
    (error,) = report.failed.values()
    assert (error.code, error.path) == ("PREDICT_FAILED", str(tmp_path / "in" / "a.nii"))
    assert "No space left" in error.message
    assert [path.name for path in report.written] == ["b.nii"]


def test_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for source, code in ((tmp_path, "INPUT_EMPTY"), (tmp_path / "none", "INPUT_MISSING")):
        with pytest.raises(BundleError) as caught:
            predict_files(source, NAME, tmp_path / "out", device="cpu")
        assert caught.value.code == code
    assert not (tmp_path / "out").exists()
