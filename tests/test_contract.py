"""What a bundle was made for: input outside of it is refused or flagged before the network runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from accunet_monai.batch import predict_files
from accunet_monai.bundle import Predictor, find_bundle, load_bundle, propose_ranges
from accunet_monai.bundle.contract import QUANTITIES, SAMPLED_VOXELS, read_contract
from accunet_monai.demo.hippocampus import BOX_MM
from accunet_monai.errors import BundleError
from accunet_monai.volumes import Volume, read_volume
from tests import made_bundle
from tests.batch.tiny import images, tiny_bundle
from tests.volumes.nifti_as_dicom import write_series

NAME = "hippocampus_mri"
EXTENT = {"quantity": "extent_mm", "range": [[0, 60], [0, 70], [0, 80]], "otherwise": "refuse"}


def contract(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"made_from": "a test", "rules": list(rules)}


def crop(shape: tuple[int, int, int] = BOX_MM, spacing: float = 1.0) -> Volume:
    image = np.random.default_rng(0).normal(100, 25, shape).clip(0).astype(np.float32)
    return Volume(image, np.diag([spacing, spacing, spacing, 1]))


def made_head(edge: int = 180) -> Volume:
    """An ellipsoid of tissue in air, of a head's size, 1 mm."""
    axes = np.ogrid[tuple(slice(-1, 1, edge * 1j) for _ in range(3))]
    inside = sum((axis / size) ** 2 for axis, size in zip(axes, (0.8, 0.95, 0.9), strict=True)) < 1
    tissue = np.random.default_rng(0).normal(100, 20, inside.shape)
    return Volume(np.where(inside, tissue, 3).astype(np.float32), np.eye(4))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Predictor, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network ran")

    monkeypatch.setattr(Predictor, "_network_call", never)


# ----------------------------------------------------------------------------------------------------------------------
# The shipped bundles


@pytest.mark.usefixtures("no_network")
def test_a_whole_head_does_not_reach_the_hippocampus_network() -> None:
    predictor = load_bundle(NAME)
    head = made_head()
    half = Volume(head.array[:90], head.affine_ras)  # one hemisphere
    coarse = Volume(head.array[::2, ::2, ::2], np.diag([2.0, 2, 2, 1]))  # of a crop's voxels, nearly
    for image in (head, half, coarse, head.reoriented("PIR")):
        with pytest.raises(BundleError) as caught:
            predictor.predict(image)
        assert caught.value.code == "INPUT_CONTRACT"
        assert "extent_mm is " in str(caught.value)
    assert "expected 0 to 60 × 0 to 85 × 0 to 66 (left to right" in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_the_average_brain_does_not_reach_the_hippocampus_network() -> None:
    pytest.importorskip("nilearn")
    from accunet_monai.demo.hippocampus import load_average_brain

    with pytest.raises(BundleError, match="INPUT_CONTRACT"):
        load_bundle(NAME).predict(load_average_brain())


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("spacing", [0.5, 0.75, 1.5, 2.0])
def test_voxels_at_which_the_network_is_known_to_fail_are_refused(spacing: float) -> None:
    with pytest.raises(BundleError, match=r"INPUT_CONTRACT.*spacing_mm is"):
        load_bundle(NAME).predict(crop((20, 26, 20), spacing))


def test_a_crop_passes_and_an_odd_one_is_flagged() -> None:
    predictor = load_bundle(NAME)
    assert predictor.predict(crop()).breaches == ()
    flagged = predictor.predict(crop((20, 51, 36))).breaches
    assert [(breach.quantity, breach.otherwise) for breach in flagged] == [("extent_mm", "warn")]
    assert "extent_mm is 20 × 51 × 36, expected 25.6 to 50.4 × 32 to 70.8 × 21.6 to 55.2" in str(flagged[0])
    background = crop()
    background = Volume(np.where(background.array > 110, background.array, 0), background.affine_ras)
    assert [breach.quantity for breach in predictor.predict(background).breaches] == [
        "relative_median", "relative_deviation",
    ]  # fmt: skip


def test_ct_is_refused_where_the_file_says_so(tmp_path: Path) -> None:
    from pydicom import dcmread

    volume = Volume(np.rint(crop().array).astype(np.int16), np.diag([-1.0, -1, 1, 1]))
    write_series(tmp_path / "mr", volume)
    write_series(tmp_path / "ct", volume)
    for path in (tmp_path / "ct").iterdir():
        ds = dcmread(path)
        ds.Modality, ds.RescaleSlope, ds.RescaleIntercept = "CT", 1, 0
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        ds.save_as(path)
    predictor = load_bundle(NAME)
    assert predictor.predict(tmp_path / "mr").breaches == ()
    with pytest.raises(BundleError, match=r"INPUT_CONTRACT.*modality is CT, expected MR"):
        predictor.predict(tmp_path / "ct")


def test_the_shipped_ranges_are_those_of_the_training_data(test_data: Path) -> None:
    bundle = find_bundle(NAME)
    split = json.loads((bundle / "configs" / "split.json").read_text(encoding="utf-8"))["parts"]
    cases = [test_data / "hippocampus" / "imagesTr" / f"{name}.nii.gz" for name in split["training"]]
    proposed = propose_ranges(cases, margin=0.2)
    stated = {
        (rule["quantity"], rule["otherwise"]): rule.get("range")
        for rule in made_bundle.read_metadata(bundle)["input_contract"]["rules"]
    }
    for quantity in ("spacing_mm", "extent_mm"):
        assert stated[quantity, "warn"] == proposed[quantity]
    for quantity in ("relative_median", "relative_deviation"):
        assert [stated[quantity, "warn"]] == proposed[quantity]
    for (_, low), (_, high) in zip(stated["extent_mm", "warn"], stated["extent_mm", "refuse"], strict=True):
        assert high == pytest.approx(1.2 * low, rel=0.01)
    predictor = load_bundle(bundle)
    for name in split["validation"]:
        volume = read_volume(test_data / "hippocampus" / "imagesTr" / f"{name}.nii.gz")
        assert predictor.contract is not None
        assert predictor.contract.breaches(volume) == ()


# ----------------------------------------------------------------------------------------------------------------------
# Any contract


def test_a_bundle_without_contract_takes_everything(tmp_path: Path) -> None:
    predictor = load_bundle(tiny_bundle(tmp_path))
    assert predictor.contract is None
    assert predictor.predict(crop((16, 16, 200))).breaches == ()


def test_ignored_for_once_and_recorded(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, contract({**EXTENT, "range": [0, 10]}))
    (path,) = images(tmp_path / "in", 1)
    options = {"device": "cpu", "console": Console(quiet=True)}
    refused = predict_files(tmp_path / "in", bundle, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert refused.failed[path].code == "INPUT_CONTRACT"
    assert not list((tmp_path / "out").glob("*_seg.nii.gz"))
    forced = predict_files(path, bundle, tmp_path / "out", ignore_contract=True, **options)  # type: ignore[arg-type]
    assert list(forced.written) == [path]
    stated = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert stated["options"]["ignore_contract"] is True
    (result,) = stated["results"]
    assert result["ignored"] is True
    assert "extent_mm is 16 × 16 × 4, expected 0 to 10" in result["breaches"][0]
    record = json.loads((tmp_path / "out" / "case_00_seg.json").read_text(encoding="utf-8"))
    assert record["contract"] == {"breaches": result["breaches"], "ignored": True}
    again = predict_files(path, bundle, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert again.failed[path].code == "INPUT_CONTRACT"  # what was made by force does not count as done
    assert not again.skipped
    network = load_bundle(bundle).predict(path, ignore_contract=True)
    assert [breach.otherwise for breach in network.breaches] == ["refuse"]


def test_of_two_rules_on_one_quantity_the_refusal_is_told() -> None:
    stated = contract(EXTENT, {"quantity": "extent_mm", "range": [1, 2], "otherwise": "warn"})
    made = read_contract({"input_contract": stated}, Path("metadata.json"))
    assert made is not None
    assert [breach.otherwise for breach in made.breaches(crop((70, 20, 20)))] == ["refuse"]
    assert [breach.otherwise for breach in made.breaches(crop((20, 20, 20)))] == ["warn"]


@pytest.mark.parametrize(
    "rule",
    [
        {"quantity": "size", "range": [0, 1], "otherwise": "warn"},
        {"quantity": "extent_mm", "range": [0, 1], "otherwise": "ignore"},
        {"quantity": "extent_mm", "range": [2, 1], "otherwise": "warn"},
        {"quantity": "extent_mm", "range": [[0, 1], [0, 1]], "otherwise": "warn"},
        {"quantity": "median", "range": [[0, 1], [0, 1], [0, 1]], "otherwise": "warn"},
        {"quantity": "median", "range": [0, float("nan")], "otherwise": "warn"},
        {"quantity": "median", "range": ["a", "b"], "otherwise": "warn"},
        {"quantity": "median", "otherwise": "warn"},
        {"quantity": "median", "range": [0, 1]},
        {"quantity": "modality", "allowed": "MR", "otherwise": "warn"},
        {"quantity": "modality", "allowed": [], "otherwise": "warn"},
        {"quantity": "modality", "range": [0, 1], "otherwise": "warn"},
        {"quantity": "median", "range": [0, 1], "otherwise": "warn", "units": "HU"},
        "extent_mm",
    ],
)
def test_contracts_that_do_not_say_clearly_what_is_meant(rule: Any) -> None:
    with pytest.raises(BundleError, match="BUNDLE_INVALID"):
        read_contract({"input_contract": contract(rule)}, Path("metadata.json"))


def test_contracts_of_another_form() -> None:
    for stated in ([], {"rules": []} | {"more": 1}, {"made_from": "x"}, "none", None):
        with pytest.raises(BundleError, match="BUNDLE_INVALID"):
            read_contract({"input_contract": stated}, Path("metadata.json"))


# ----------------------------------------------------------------------------------------------------------------------
# What is measured


def measured(volume: Volume) -> dict[str, tuple[float, ...]]:
    return {name: function(volume) for name, function in QUANTITIES.items()}


def test_quantities_by_hand() -> None:
    affine = np.array([[0, 0, -3.0, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])  # axes A, S, L
    values = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    found = measured(Volume(values, affine))
    assert found["spacing_mm"] == pytest.approx((3, 1, 2))
    assert found["extent_mm"] == pytest.approx((18, 4, 10))
    assert found["tilt_degrees"] == pytest.approx((0,), abs=1e-4)
    assert found["median"] == pytest.approx((59.5,))
    assert found["relative_median"] == pytest.approx((0.5,), abs=0.01)
    assert found["relative_deviation"] == pytest.approx((0.29,), abs=0.01)
    turned = measured(Volume(7 * values - 100, affine))
    for name in ("relative_median", "relative_deviation"):
        assert turned[name] == pytest.approx(found[name], abs=1e-5)  # scale and offset do not matter


@pytest.mark.parametrize("degrees", [0.0, 10.0, 30.0, 45.0])
def test_tilt(degrees: float) -> None:
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert QUANTITIES["tilt_degrees"](Volume(np.zeros((3, 3, 3)), affine)) == pytest.approx((degrees,), abs=1e-3)


def test_large_volumes_are_sampled_and_constant_ones_have_statistics() -> None:
    head = made_head(150)
    assert head.array.size > SAMPLED_VOXELS
    exact = float(np.percentile(head.array, 99.5))
    assert QUANTITIES["percentile_99.5"](head)[0] == pytest.approx(exact, rel=0.01)
    assert measured(Volume(np.full((4, 4, 4), 7.0), np.eye(4)))["relative_median"] == (0,)


def test_ranges_of_nothing() -> None:
    with pytest.raises(BundleError, match="INPUT_EMPTY"):
        propose_ranges([])
