"""The command line: exit status, what is printed and what is written."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from pydicom import dcmread
from typer.testing import CliRunner

from accunet_monai import __version__
from accunet_monai.bundle import find_bundle, load_bundle
from accunet_monai.cli import app
from accunet_monai.volumes import Volume, read_label_map
from tests import made_bundle
from tests.batch.tiny import images, tiny_bundle
from tests.volumes.nifti_as_dicom import write_series

NAME = "hippocampus_mri"
FORMATS = (("seg", ".dcm"), ("nifti", ".nii.gz"))


def accunet(*arguments: object, status: int = 0) -> Result:
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def test_version_names_this_package_and_its_foundations() -> None:
    output = accunet("version").stdout
    assert f"accunet-monai {__version__}\n" in output
    assert f"torch {torch.__version__}\n" in output
    assert re.search(r"^monai \d", output, re.MULTILINE)


def test_bundle_list_and_show() -> None:
    assert re.search(rf"{NAME}.*Segmentation of the anterior", accunet("bundle", "list").stdout)
    shown = accunet("bundle", "show", NAME).stdout
    total = sum(parameter.numel() for parameter in load_bundle(NAME).network.parameters())
    assert f"{total:,}" in shown
    assert "1 anterior hippocampus, 2 posterior hippocampus" in shown
    assert '"base_filters": 16' in shown  # the weights' header
    parts = re.findall(r"│ (\w+) +│ [^│]+│ +([\d,]+) +│", shown)
    assert sum(int(count.replace(",", "")) for name, count in parts if name != "all") == total


def test_export_checkpoint_writes_a_state_dict(tmp_path: Path) -> None:
    accunet("bundle", "export-checkpoint", NAME, tmp_path / "model.pt")
    state_dict = torch.load(tmp_path / "model.pt", weights_only=True)
    expected = load_bundle(NAME).network.state_dict()
    assert state_dict.keys() == expected.keys()
    assert all(torch.equal(state_dict[key], value) for key, value in expected.items())


def test_predict_a_folder_with_a_bad_file(tmp_path: Path) -> None:
    image = made_bundle.made_volume(0)[0]
    good = made_bundle.save_volume(tmp_path / "in" / "good.nii.gz", image)
    bad = made_bundle.save_volume(tmp_path / "in" / "bad.nii.gz", np.stack([image] * 3, 3))
    (tmp_path / "in" / "[broken].nii").write_bytes(b"no NIfTI")
    output = tmp_path / "out"
    result = accunet("predict", good.parent, "--bundle", NAME, "-o", output, "--overlay", "--device", "cpu", status=1)
    assert f"[VOLUME_NOT_3D] {bad}: expected a 3D volume, found shape (10, 20, 18, 3)" in result.stdout
    assert f"{tmp_path / 'in' / '[broken].nii'}: " in result.stdout  # brackets in a path are no markup
    assert re.search(r"│ 1 +│ 2 +│", result.stdout)
    assert sorted(path.name for path in output.iterdir()) == [
        "good_overlay.png", "good_seg.json", "good_seg.nii.gz", "predictions.json",
    ]  # fmt: skip
    accunet("predict", good, "--bundle", NAME, "-o", tmp_path / "other", "--device", "cpu")
    again = read_label_map(tmp_path / "other" / "good_seg.nii.gz").array
    np.testing.assert_array_equal(again, read_label_map(output / "good_seg.nii.gz").array)


def test_predict_writes_what_is_asked_for_and_averages_weights(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    images(tmp_path / "in", 2)
    weights = bundle / "models" / "model.safetensors"
    arguments = ("predict", tmp_path / "in", "--bundle", bundle, "--device", "cpu", "-o")
    more = ("--uncertainty", "--measures", "--review", "--weights", weights, "--weights", weights)
    assert re.search(r"│ 2 +│ 0 +│ 0 +│", accunet(*arguments, tmp_path / "out", *more).stdout)
    assert re.search(r"│ 0 +│ 0 +│ 2 +│", accunet(*arguments, tmp_path / "out", *more).stdout)
    assert re.search(r"│ 2 +│ 0 +│ 0 +│", accunet(*arguments, tmp_path / "out", *more, "--overwrite").stdout)
    assert re.search(r"│ 2 +│ 0 +│ 0 +│", accunet(*arguments, tmp_path / "out").stdout)  # another model
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {
        "case_00_seg.nii.gz",
        "case_00_uncertainty.nii.gz",
        "measures.csv",
        "measures.json",
        "review.html",
    }
    shares = nib.load(tmp_path / "out" / "case_01_uncertainty.nii.gz")
    assert shares.get_data_dtype() == np.uint8
    expected = load_bundle(bundle, [weights, weights]).predict(tmp_path / "in" / "case_01.nii.gz", uncertainty=True)
    assert expected.uncertainty is not None
    np.testing.assert_allclose(shares.get_fdata(), expected.uncertainty, atol=0.003)
    np.testing.assert_array_equal(shares.affine, nib.load(tmp_path / "in" / "case_01.nii.gz").affine)
    averaged = accunet(*arguments, tmp_path / "both", "--bundle", bundle)
    assert re.search(r"│ 2 +│ 0 +│ 0 +│", averaged.stdout)


def test_predict_explains_and_refuses_unless_told_otherwise(tmp_path: Path) -> None:
    rule = {"quantity": "spacing_mm", "range": [2, 3], "otherwise": "refuse"}
    bundle = tiny_bundle(tmp_path, {"rules": [rule]})
    (path,) = images(tmp_path / "in", 1)
    arguments = ("predict", path, "--bundle", bundle, "-o", tmp_path / "out", "--device", "cpu")
    assert "16 × 16 × 4" in accunet(*arguments, "--explain").stdout
    assert not (tmp_path / "out").exists()
    refused = accunet(*arguments, status=1).stdout
    assert f"failed [INPUT_CONTRACT] {path}: " in refused
    assert "spacing_mm is 1 × 1 × 1, expected 2 to 3" in refused
    forced = accunet(*arguments, "--ignore-contract").stdout
    assert f"flagged {path}: the bundle was not made for it: spacing_mm is" in forced


def test_series_prints_what_is_there_and_why_it_would_be_refused(tmp_path: Path) -> None:
    image = Volume(made_bundle.made_volume(0)[0], np.diag([-1.0, -1, 1, 1]))
    good = write_series(tmp_path / "in" / "good", image, "T1 [axial]\x1b[31m")
    write_series(tmp_path / "in" / "gap", image, "gap")
    by_depth = sorted((tmp_path / "in" / "gap").iterdir(), key=lambda path: dcmread(path).ImagePositionPatient[2])
    by_depth[5].unlink()
    (tmp_path / "in" / "notes.txt").write_text("not an image", encoding="utf-8")
    output = accunet("series", tmp_path / "in").stdout
    assert re.search(rf"│ MR +│ 1 +│ T1 \[axial\]\?\[31m │ 10 × 20 × 18 +│ +│ {good} *│ readable", output)
    assert "10 × 20 × 17" in output
    assert "[GEOM_MISSING_SLICE]" in output
    assert re.search(r"1 file passed over: \[NOT_DICOM\]", output)
    assert "\x1b" not in output
    missing = accunet("series", tmp_path / "none", status=1)
    assert missing.stderr.startswith(f"error: [FILE_MISSING] {tmp_path / 'none'}: ")


def test_predict_writes_dicom_seg_on_request(tmp_path: Path) -> None:
    write_series(tmp_path / "in", Volume(made_bundle.made_volume(0)[0], np.diag([-1.0, -1, 1, 1])))
    arguments = ("predict", tmp_path / "in", "--bundle", NAME, "--device", "cpu", "-o")
    accunet(*arguments, tmp_path / "seg", "--format", "seg")
    accunet(*arguments, tmp_path / "nifti")
    (seg,), (nifti,) = ([*(tmp_path / name).glob(f"*_seg{ending}")] for name, ending in FORMATS)
    assert dcmread(seg).Modality == "SEG"
    assert seg.name.removesuffix(".dcm") == nifti.name.removesuffix(".nii.gz")
    for source in (seg, seg.parent):  # DICOM, but nothing to segment
        refused = accunet("predict", source, "--bundle", NAME, "-o", tmp_path / "x", status=1)
        assert refused.stderr.startswith(f"error: [INPUT_EMPTY] {source}: ")
        listed = accunet("series", source, status=1)
        assert "1 file passed over: [SERIES_NOT_IMAGE]" in listed.stdout
        assert listed.stderr.startswith(f"error: [SERIES_NONE] {source}: ")
        assert "┃" not in listed.stdout
    assert "'nrrd' is not one of" in accunet(*arguments, tmp_path / "x", "--format", "nrrd", status=2).stderr


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_predict_pictures_with_a_bundle_for_pictures(ending: str, tmp_path: Path) -> None:
    bundle = made_bundle.picture_bundle(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (33, 40, 4), dtype=np.uint8)
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(pixels[..., :3]).save(source / f"colour.{ending}", quality=100)
    arguments = ("predict", source, "--bundle", bundle, "-o", tmp_path / "out", "--overlay", "--device", "cpu")
    accunet(*arguments)
    expected = load_bundle(bundle).predict(source / f"colour.{ending}")
    with Image.open(tmp_path / "out" / "colour_seg.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), expected.label_map)
    with Image.open(tmp_path / "out" / "colour_overlay.png") as overlay:
        shown = np.asarray(overlay)
    background = np.broadcast_to(expected.label_map[..., None] == 0, shown.shape)
    plain = np.moveaxis(np.asarray(expected.image), 0, -1)
    np.testing.assert_allclose(shown[background], plain[background], atol=1)  # in the picture's own colours
    assert np.abs(shown[~background] - plain[~background]).max() > 30

    Image.fromarray(pixels[..., 0]).save(source / "grey.png")
    Image.fromarray(pixels, "RGBA").save(source / "transparent.png")
    result = accunet(*arguments, status=1)
    for name in ("grey.png", "transparent.png"):
        assert f"[PICTURE_CHANNELS] {source / name}: " in result.stdout
    (tmp_path / "volumes").mkdir()
    made_bundle.save_volume(tmp_path / "volumes" / "a.nii", made_bundle.made_volume(0)[0])
    refused = accunet("predict", tmp_path / "volumes", "--bundle", bundle, "-o", tmp_path / "out", status=1)
    assert "[INPUT_EMPTY]" in refused.stderr


def test_output_among_the_images_and_unknown_bundles(tmp_path: Path) -> None:
    path = made_bundle.save_volume(tmp_path / "a.nii", made_bundle.made_volume(0)[0])
    assert "[OUTPUT_TAKEN]" in accunet("predict", path, "--bundle", NAME, "-o", tmp_path, status=1).stderr
    result = accunet("predict", path, "--bundle", "hippocampus", "-o", tmp_path / "out", status=1)
    assert result.stderr.startswith("error: [BUNDLE_UNKNOWN] hippocampus: ")
    assert NAME in result.stderr
    assert "Traceback" not in result.output


def test_misspelt_overrides_are_refused_with_the_nearest_key(tmp_path: Path) -> None:
    for command, wrong, right in (("train", "max_epoch=3", "max_epochs"), ("evaluate", "limit_case=1", "limit_cases")):
        result = accunet(command, NAME, "--dataset_dir", tmp_path, "--set", wrong, status=1)
        assert "[OVERRIDE_UNKNOWN]" in result.stderr
        assert f"Did you mean '{right}'?" in result.stderr
    assert "expected KEY=VALUE" in accunet("train", NAME, "--dataset_dir", ".", "--set", "max_epochs", status=2).stderr


def test_errors_from_within_a_config_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("train", "evaluate"):
        result = accunet(command, NAME, "--dataset-dir", tmp_path / "none", status=1)
        assert result.stderr.startswith(f"error: [DATASET_MISSING] {tmp_path / 'none'}: ")
        assert len(result.stderr.splitlines()) == 1
    assert find_bundle(NAME).is_dir()
