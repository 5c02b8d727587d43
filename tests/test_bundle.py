"""Bundles found, opened and run on files; what asks for more than the literal sections may is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from pydoc import locate
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from accunet_monai.bundle import (
    ALLOWED_TARGETS,
    find_bundle,
    find_images,
    list_bundles,
    load_bundle,
    read_literal_sections,
)
from accunet_monai.bundle.arguments import ARGUMENTS
from accunet_monai.errors import AccunetError, BundleError, VolumeError
from accunet_monai.networks import ACCUNet
from accunet_monai.networks.checkpoint import load_network, save_network
from accunet_monai.transforms import LoadVolumed, OrientVolumed, ResampleVolumed
from accunet_monai.volumes import Volume, read_volume
from tests import made_bundle

NAME = "hippocampus_mri"
Config = dict[str, Any]

ROUNDING = 2
"""Voxels that may differ between two ways to the same label map: sums in another order, argmax between near-equals."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return made_bundle.copied_bundle(find_bundle(NAME), tmp_path)


def code_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AccunetError) as caught:
        function(*args, **kwargs)
    return caught.value.code


# ----------------------------------------------------------------------------------------------------------------------
# Finding


def test_found_by_name_and_by_path(bundle: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_bundle(NAME) == root / "bundles" / NAME
    assert root / "bundles" / NAME in list_bundles()
    assert find_bundle(bundle) == bundle
    monkeypatch.chdir(bundle.parent)
    assert find_bundle(bundle.name) == bundle
    (bundle.parent / NAME).mkdir()  # a folder of that name which is no bundle does not hide the shipped one
    assert find_bundle(NAME) == root / "bundles" / NAME


def test_unknown_bundles_are_refused_with_what_there_is(tmp_path: Path) -> None:
    for name in ("hippocampus", tmp_path):
        with pytest.raises(BundleError, match=NAME) as caught:
            find_bundle(name)
        assert caught.value.code == "BUNDLE_UNKNOWN"


def test_images_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.nii", "a.NII.GZ", ".hidden.nii", "notes.txt", "sub/c.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.NII.GZ", "b.nii"]
    assert code_of(find_images, tmp_path / "sub", (".png",)) == "INPUT_EMPTY"
    assert code_of(find_images, tmp_path / "none") == "INPUT_MISSING"
    assert [path.name for path in find_images(tmp_path / "sub" / "c.nii")] == ["c.nii"]


# ----------------------------------------------------------------------------------------------------------------------
# Literal sections; what must not get through is in tests/malicious


def test_what_is_outside_of_the_literal_sections_is_not_even_looked_at(bundle: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    config = made_bundle.read_config(bundle, "inference")
    touch = f"$__import__('pathlib').Path({str(marker)!r}).touch()"
    config |= {"imports": [touch], "initialize": [touch]}
    config["network"] = {"_target_": "os.system", "command": f"touch {marker}"}
    made_bundle.write_config(bundle, "inference", config)
    load_bundle(bundle)
    assert not marker.exists()


@pytest.mark.parametrize("section", ["network_def", "preprocessing", "inferer"])
def test_missing_sections(section: str, bundle: Path) -> None:
    config = made_bundle.read_config(bundle, "inference")
    del config[section]
    made_bundle.write_config(bundle, "inference", config)
    assert code_of(load_bundle, bundle) == "BUNDLE_INVALID"


NOT_HANDED_ON = {
    "args",
    "kwargs",  # of torch.argmax and the like
    "log_stats",
    "other",
    "overrides",
    "post_func",
    "scratch_dir",  # a path
    "with_coord",  # gives the network another argument
}
"""Parameters of allowed targets that a bundle may not set: callables, paths, and what reaches further components."""


def test_every_parameter_of_every_allowed_target_is_judged() -> None:
    """A parameter that a new release brings is refused until somebody has looked what can be done with it."""
    found = {name for target in ALLOWED_TARGETS for name in inspect.signature(cast(Any, locate(target))).parameters}
    assert found - ARGUMENTS.keys() - {"transforms"} == NOT_HANDED_ON
    assert ARGUMENTS.keys() <= found


def test_misspelt_arguments_have_a_suggestion(bundle: Path) -> None:
    config = made_bundle.read_config(bundle, "inference")
    config["inferer"]["rio_size"] = config["inferer"].pop("roi_size")
    made_bundle.write_config(bundle, "inference", config)
    with pytest.raises(BundleError, match=r"inferer\.rio_size.*Did you mean 'roi_size'\?"):
        load_bundle(bundle)


@pytest.mark.parametrize("text", ["network_def: [", "", "- network_def", "just text"])
def test_yaml_that_is_no_config(text: str, bundle: Path) -> None:
    (bundle / "configs" / "inference.yaml").write_text(text, encoding="utf-8")
    assert code_of(read_literal_sections, bundle) == "BUNDLE_INVALID"


def test_a_set_is_not_literal_enough(bundle: Path) -> None:
    path = bundle / "configs" / "inference.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("axcodes: RAS", "axcodes: !!set {$1}"), encoding="utf-8")
    assert code_of(read_literal_sections, bundle) == "BUNDLE_EXPRESSION"


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata: metadata.pop("network_data_format"),
        lambda metadata: metadata["network_data_format"].update(inputs=[]),
        lambda metadata: metadata["network_data_format"]["outputs"]["pred"].pop("channel_def"),
        lambda metadata: metadata["network_data_format"]["outputs"]["pred"].update(channel_def={"x": "y"}),
    ],
)
def test_metadata_without_what_is_needed(change: Callable[[Any], object], bundle: Path) -> None:
    metadata = made_bundle.read_metadata(bundle)
    change(metadata)
    made_bundle.write_metadata(bundle, metadata)
    assert code_of(load_bundle, bundle) == "BUNDLE_INVALID"


@pytest.mark.parametrize("text", ["", "[]", "null", "{"])
def test_metadata_that_is_no_object(text: str, bundle: Path) -> None:
    (bundle / "configs" / "metadata.json").write_text(text, encoding="utf-8")
    assert code_of(load_bundle, bundle) == "BUNDLE_INVALID"


# ----------------------------------------------------------------------------------------------------------------------
# Weights


def test_weights_that_are_missing_or_of_another_network(bundle: Path, tmp_path: Path) -> None:
    other = save_network(ACCUNet(2, 3, 3, base_filters=4), tmp_path / "other.safetensors")
    assert code_of(load_bundle, bundle, weights=other) == "WEIGHTS_MISMATCH"
    (bundle / "models" / "model.safetensors").unlink()
    assert code_of(load_bundle, bundle) == "WEIGHTS_MISSING"


# ----------------------------------------------------------------------------------------------------------------------
# Prediction on volumes


@pytest.fixture(params=["made", "real"])
def image_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A made volume, and a real one where the test data is at hand."""
    if request.param == "made":
        return made_bundle.save_volume(tmp_path / "made.nii.gz", made_bundle.made_volume(0, (12, 21, 18))[0])
    data: Path = request.getfixturevalue("test_data")
    return sorted((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[0]


def by_hand(path: Path) -> torch.Tensor:
    """What that bundle's preprocessing says, in numpy: slices (X, 3, 64, 48) of the image in RAS."""
    image = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, dtype=np.float64)
    low, high = np.percentile(image, [0.5, 99.5])
    image = np.clip((image - low) / (high - low), 0, 1)
    image = (image - image.mean()) / image.std()
    above, beside = ((full - size) // 2 for full, size in zip((64, 48), image.shape[1:], strict=True))
    after = 64 - image.shape[1] - above, 48 - image.shape[2] - beside
    image = np.pad(image, ((1, 1), (above, after[0]), (beside, after[1])), mode="edge")
    return torch.from_numpy(np.stack([image[:-2], image[1:-1], image[2:]], 1)).float()


@pytest.fixture
def lively(bundle: Path, image_path: Path) -> Path:
    """The hippocampus bundle, sagittal slices alone, with random weights that give every label on the image."""
    made_bundle.one_view(bundle)
    made_bundle.random_weights(made_bundle.without_cleaning(bundle), by_hand(image_path)[5:6])
    return bundle


def test_a_prediction_equals_the_steps_done_by_hand(lively: Path, image_path: Path) -> None:
    prediction = load_bundle(lively).predict(image_path)
    source = nib.load(image_path)
    assert isinstance(prediction.image, Volume)
    assert prediction.label_map.shape == source.shape
    assert prediction.label_map.dtype == np.uint8
    np.testing.assert_array_equal(prediction.image.affine_ras, source.affine)
    ras = nib.as_closest_canonical(nib.Nifti1Image(prediction.label_map, source.affine))
    _, rows, columns = ras.shape
    top, left = (64 - rows) // 2, (48 - columns) // 2
    network = load_network(lively / "models" / "model.safetensors")
    with torch.no_grad():
        labels = torch.cat([network(plane[None]).argmax(1) for plane in by_hand(image_path)])
    expected = labels[:, top : top + rows, left : left + columns].numpy()
    assert np.bincount(expected.ravel(), minlength=3).min() > 100
    assert np.count_nonzero(np.asarray(ras.dataobj) != expected) <= ROUNDING


def test_however_the_image_is_stored_the_same_places_get_the_same_labels(
    lively: Path, image_path: Path, tmp_path: Path
) -> None:
    predictor = load_bundle(lively)
    source = nib.load(image_path)
    reference = predictor.predict(image_path)
    assert isinstance(reference.image, Volume)
    expected = Volume(reference.label_map, reference.image.affine_ras).reoriented("RAS")
    for axcodes in ("LPS", "LAS", "PIR"):
        change = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(source.affine), nib.orientations.axcodes2ornt(tuple(axcodes))
        )
        path = tmp_path / f"{axcodes}.nii.gz"
        nib.save(source.as_reoriented(change), path)
        prediction = predictor.predict(path)
        assert isinstance(prediction.image, Volume)
        assert "".join(prediction.image.axcodes) == axcodes
        assert prediction.label_map.shape == prediction.image.shape
        found = Volume(prediction.label_map, prediction.image.affine_ras).reoriented("RAS")
        np.testing.assert_allclose(found.affine_ras, expected.affine_ras, atol=1e-5)
        assert np.count_nonzero(found.array != expected.array) <= ROUNDING


def test_a_volume_object_is_segmented_like_its_file(tmp_path: Path) -> None:
    path = made_bundle.save_volume(tmp_path / "a.nii", made_bundle.made_volume(3)[0])
    predictor = load_bundle(NAME)
    first, second = predictor.predict(path), predictor.predict(read_volume(path))
    np.testing.assert_array_equal(first.label_map, second.label_map)


@pytest.mark.parametrize(
    "postprocessing",
    [
        None,  # stays in the orientation of the preprocessing
        {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "pred"},  # fractions
    ],
)
def test_a_bundle_whose_result_is_no_label_map_on_the_images_grid(
    postprocessing: Config | None, bundle: Path, tmp_path: Path
) -> None:
    config = made_bundle.read_config(bundle, "inference")
    config["postprocessing"] = postprocessing
    made_bundle.write_config(bundle, "inference", config)
    affine = np.array([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    path = made_bundle.save_volume(tmp_path / "a.nii", made_bundle.made_volume(3)[0], affine)
    assert code_of(load_bundle(bundle).predict, path) == "BUNDLE_OUTPUT"


def test_a_bundle_that_resamples_and_scales_gives_a_label_map_on_the_images_own_grid(
    bundle: Path, tmp_path: Path
) -> None:
    config = made_bundle.read_config(made_bundle.without_contract(bundle), "inference")
    ours = "accunet_monai.transforms."
    config["preprocessing"]["transforms"] = [
        {"_target_": f"{ours}LoadVolumed", "keys": "image", "form": "sform"},
        {"_target_": f"{ours}OrientVolumed", "keys": "image", "axcodes": "RAS"},
        {"_target_": f"{ours}ResampleVolumed", "keys": "image", "spacing": [1.0, 0, 1.3]},
        {"_target_": f"{ours}ClipPercentilesd", "keys": "image", "lower": 1, "upper": 99, "foreground": "mean"},
        {"_target_": f"{ours}WindowCTd", "keys": "image", "center": 100, "width": 400},
        {"_target_": f"{ours}ZScoreForegroundd", "keys": "image"},
    ]
    made_bundle.write_config(bundle, "inference", config)
    image = np.random.default_rng(0).integers(0, 200, (9, 10, 11)).astype(np.int16)
    path = made_bundle.save_volume(tmp_path / "a.nii", image, np.diag([-2.0, 1.5, 0.9, 1]))
    prediction = load_bundle(bundle).predict(path, ignore_contract=True)
    assert prediction.label_map.shape == (9, 10, 11)
    work = ResampleVolumed("x", [1.0, 0, 1.3])(OrientVolumed("x")(LoadVolumed("x")({"x": path})))["x"]
    assert work.shape == (1, 18, 10, 8)  # the network saw another grid


# ----------------------------------------------------------------------------------------------------------------------
# Prediction on pictures


@pytest.fixture(scope="module")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_bundle.picture_bundle(tmp_path_factory.mktemp("colour"))


def test_a_picture_bundle_segments_pictures(colour_bundle: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    prediction = load_bundle(colour_bundle).predict(tmp_path / "a.png")
    network = load_network(colour_bundle / "models" / "model.safetensors")
    with torch.no_grad():
        logits = network(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    np.testing.assert_array_equal(np.asarray(prediction.image), np.moveaxis(pixels, -1, 0))
    assert prediction.label_map.shape == (37, 50)
    assert np.count_nonzero(prediction.label_map != logits[0].argmax(0).numpy()) <= ROUNDING
    assert set(np.unique(prediction.label_map)) == {0, 1, 2}


def test_pictures_of_other_channels_and_volumes_are_refused(colour_bundle: Path, tmp_path: Path) -> None:
    predictor = load_bundle(colour_bundle)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "transparent.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    for name in ("transparent.png", "grey.png"):
        with pytest.raises(VolumeError) as caught:
            predictor.predict(tmp_path / name)
        assert (caught.value.code, caught.value.path) == ("PICTURE_CHANNELS", str(tmp_path / name))
    assert code_of(predictor.predict, Volume(np.zeros((3, 3, 3)), np.eye(4))) == "BUNDLE_INPUT"
    grey = load_bundle(made_bundle.picture_bundle(tmp_path, channels=1))
    assert grey.predict(tmp_path / "grey.png").label_map.shape == (20, 20)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "colour.png")
    assert code_of(grey.predict, tmp_path / "colour.png") == "PICTURE_CHANNELS"


def test_bfloat16_changes_probabilities_and_hardly_any_label(test_data: Path) -> None:
    image = test_data / "hippocampus" / "imagesTr" / "hippocampus_003.nii.gz"
    plain, reduced = (load_bundle("hippocampus_mri", precision=precision) for precision in ("float32", "bfloat16"))
    assert plain.digest != reduced.digest
    expected, found = (predictor.predict(image, uncertainty=True) for predictor in (plain, reduced))
    assert 0 < np.abs(found.uncertainty - expected.uncertainty).mean() < 0.01
    assert (found.label_map == expected.label_map).mean() >= 0.999
    with pytest.raises(BundleError, match="float32, bfloat16, got 'float8'") as caught:
        load_bundle("hippocampus_mri", precision="float8")
    assert caught.value.code == "BUNDLE_PRECISION"
