"""Configs run from our command line: override keys are checked, overlays replace, a bundle knows its own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accunet_monai.bundle import find_bundle
from accunet_monai.errors import BundleError
from accunet_monai.workflow import config_files, run_config, running_bundle_root, running_workflow
from tests import made_bundle

# MONAI says of every config but the shipped ones that it is trusted; here that is known.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

CONFIG = {
    "imports": [
        "$from accunet_monai.workflow import running_bundle_root",
        "$from accunet_monai.workflow import running_workflow",
    ],
    "bundle_root": "$running_bundle_root('hippocampus_mri')",
    "max_epochs": 5,
    "nested": {"inner": {"rate": 0.5}, "items": [1, 2, 3]},
    "ran": [],
    "seen": ["$@max_epochs", "$@nested::inner::rate", "$@nested#items", "$@bundle_root"],
    "run": ["$@ran.append(list(@seen))", "$@ran.append(running_workflow().config_root_path)"],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose run leaves behind what it saw."""
    folder = tmp_path / "made"
    (folder / "configs").mkdir(parents=True)
    made_bundle.write_metadata(folder, {"version": "0.0.1"})
    made_bundle.write_config(folder, "train", CONFIG)
    made_bundle.write_config(folder, "evaluate", {**CONFIG, "part": "validation"})
    return folder


def seen(bundle: Path, overrides: dict[str, Any], *overlays: Path, name: str = "train") -> list[Any]:
    values: list[Any] = run_config(bundle, name, overrides, overlays).parser.get_parsed_content("ran")[0]
    return values


def test_overrides_reach_nested_keys_in_both_spellings(bundle: Path) -> None:
    assert seen(bundle, {}) == [5, 0.5, [1, 2, 3], str(bundle)]
    overrides = {"max_epochs": 7, "nested::inner::rate": 0.25, "nested#items": [4]}
    assert seen(bundle, overrides) == [7, 0.25, [4], str(bundle)]
    assert seen(bundle, {"nested::items::1": 9})[2] == [1, 9, 3]
    assert seen(bundle, {"max_epochs": 1}, name="evaluate")[0] == 1


@pytest.mark.parametrize(
    ("key", "value", "code", "told"),
    [
        ("max_epochs", "abc", "OVERRIDE_VALUE", "max_epochs is a number, here 1; found 'abc'"),
        ("nested::inner::rate", "low", "OVERRIDE_VALUE", "found 'low'"),
        ("device", "cuda:99", "DEVICE_MISSING", "'cuda:99'"),
        ("device", "gpu", "DEVICE_MISSING", "'gpu'"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line(
    key: str, value: str, code: str, told: str, bundle: Path
) -> None:
    made_bundle.write_config(bundle, "train", {**CONFIG, "max_epochs": 1, "device": "cpu"})
    with pytest.raises(BundleError) as caught:
        config_files(bundle, "train", {key: value})
    assert caught.value.code == code
    assert told in caught.value.message
    assert config_files(bundle, "train", {"max_epochs": "$1 + 1", "device": "$'cuda'"})


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("max_epoch", "Did you mean 'max_epochs'?"),
        ("maxepochs", "Did you mean 'max_epochs'?"),
        ("nested::inner::rte", "Did you mean 'nested::inner::rate'?"),
        ("nested#innr", "Did you mean 'nested::inner'?"),
        ("nested::items::3", "nested::items"),
        ("zzz", "Top-level keys: imports, bundle_root, max_epochs"),
        ("part", "Top-level keys"),
    ],
)
def test_keys_that_do_not_exist_are_refused_before_anything_runs(key: str, hint: str, bundle: Path) -> None:
    marker = bundle / "ran"
    made_bundle.write_config(
        bundle, "train", {**CONFIG, "initialize": [f"$__import__('pathlib').Path({str(marker)!r}).touch()"]}
    )
    with pytest.raises(BundleError) as caught:
        run_config(bundle, "train", {key: 1})
    assert caught.value.code == "OVERRIDE_UNKNOWN"
    assert repr(key) in caught.value.message
    assert hint in str(caught.value)
    assert not marker.exists()


def test_overlays_replace_top_level_keys_and_overrides_win(bundle: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "fast.yaml"
    overlay.write_text("max_epochs: 2\nnested: {inner: {rate: 0.1}, items: []}\n", encoding="utf-8")
    assert seen(bundle, {}, overlay) == [2, 0.1, [], str(bundle)]
    assert seen(bundle, {"max_epochs": 3}, overlay)[0] == 3


def test_configs_that_a_bundle_does_not_have(bundle: Path) -> None:
    for name in ("inference", "metadata"):
        with pytest.raises(BundleError, match="It has evaluate, train") as caught:
            run_config(bundle, name, {})
        assert caught.value.code == "BUNDLE_NO_CONFIG"
    with pytest.raises(BundleError) as caught:
        run_config(bundle.parent, "train", {})
    assert caught.value.code == "BUNDLE_UNKNOWN"


def test_a_workflow_is_known_from_within_only(bundle: Path) -> None:
    workflow = run_config(bundle, "train", {})
    assert workflow.parser.get_parsed_content("ran")[1] == bundle / "configs"
    assert running_workflow() is None
    assert running_bundle_root("hippocampus_mri") == str(find_bundle("hippocampus_mri"))


@pytest.mark.parametrize(
    ("content", "code"),
    [("max_epoch: 1\n", "OVERRIDE_UNKNOWN"), ("network_def: {}\n", "OVERLAY_LITERAL"), (None, "CONFIG_MISSING")],
)
def test_overlays_with_wrong_keys_are_refused(tmp_path: Path, content: str | None, code: str) -> None:
    overlay = tmp_path / "overlay.yaml"
    if content is not None:
        overlay.write_text(content)
    with pytest.raises(BundleError) as caught:
        run_config("hippocampus_mri", "train", {}, (overlay,))
    assert caught.value.code == code
    assert str(overlay) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        ("max_epochs: 1\nmax_epochs: 2\n", "BUNDLE_INVALID", "there twice"),
        ("max_epochs: [\n", "BUNDLE_INVALID", "plain data"),
        ("max_epochs: !!python/object/apply:os.getcwd []\n", "BUNDLE_INVALID", "plain data"),
        ("nested: {inner: {rte: 0.1}}\n", "OVERRIDE_UNKNOWN", "Did you mean 'nested::inner::rate'?"),
        ("nested::inner::rte: 0.1\n", "OVERRIDE_UNKNOWN", "Did you mean 'nested::inner::rate'?"),
        ("+nestd: {}\n", "OVERRIDE_UNKNOWN", "Did you mean 'nested'?"),
        ("network_def::base_filters: 8\n", "OVERLAY_LITERAL", "network_def"),
        ("network_def#base_filters: 8\n", "OVERLAY_LITERAL", "network_def"),
        ("+postprocessing: {}\n", "OVERLAY_LITERAL", "postprocessing"),
    ],
)
def test_overlays_that_are_not_what_they_should_be(content: str, code: str, said: str, bundle: Path) -> None:
    overlay = bundle.parent / "overlay.yaml"
    overlay.write_text(content, encoding="utf-8")
    with pytest.raises(BundleError) as caught:
        run_config(bundle, "train", {}, (overlay,))
    assert caught.value.code == code
    assert said in str(caught.value)
    assert str(overlay) in str(caught.value)


def test_an_overlay_of_another_kind_is_refused(bundle: Path) -> None:
    overlay = bundle.parent / "overlay.txt"
    overlay.write_text("max_epochs: 1\n", encoding="utf-8")
    with pytest.raises(BundleError, match="neither JSON nor YAML"):
        run_config(bundle, "train", {}, (overlay,))


def test_overlays_may_set_nested_keys_and_extend_lists(bundle: Path) -> None:
    overlay = bundle.parent / "overlay.yaml"
    overlay.write_text("nested::inner::rate: 0.1\n+nested: {items: [4]}\n", encoding="utf-8")
    assert seen(bundle, {}, overlay)[1:3] == [0.1, [4]]


def test_literal_sections_are_not_overridden_and_nested_values_are_looked_through(bundle: Path) -> None:
    for key, value, code in (
        ("network_def", {}, "OVERLAY_LITERAL"),
        ("inferer::roi_size", [4, 4], "OVERLAY_LITERAL"),
        ("nested", {"inner": {"rte": 1}}, "OVERRIDE_UNKNOWN"),
        ("nested::inner", {"rte": 1}, "OVERRIDE_UNKNOWN"),
    ):
        with pytest.raises(BundleError) as caught:
            run_config(bundle, "train", {key: value})
        assert caught.value.code == code


def test_a_component_may_be_replaced_by_another_with_other_arguments(bundle: Path) -> None:
    rate = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 4}
    assert seen(bundle, {"nested": {"inner": {"rate": rate}, "items": []}})[1] == 0.25


def test_a_config_that_is_no_plain_data_is_refused(bundle: Path) -> None:
    (bundle / "configs" / "train.yaml").write_text("max_epochs: 1\nmax_epochs: 2\n", encoding="utf-8")
    with pytest.raises(BundleError, match="'max_epochs' is there twice"):
        run_config(bundle, "train", {})
