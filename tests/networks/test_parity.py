"""Parity with the authors' implementation on its recorded outputs, and translation of its weights both ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from accunet_monai.errors import NetworkError
from accunet_monai.networks import ACCUNet, from_official, to_official
from tests.networks.literal import LiteralACCUNet
from tests.networks.recorded import CASES, facts, formula_weights, image_and_logits

RECORDED_ROUNDING = 1e-7
"""Logits were recorded as float32 and are below 0.2, so float64 must agree much better than the 1e-5 asked for."""
LITE = "acc_unet_lite_gray_binary"
RGB = "acc_unet_rgb_binary"
WEIGHTED = "acc_unet_w_gray_binary"


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Tensor], ACCUNet]:
    weights = formula_weights(request.param)
    return request.param, weights, ACCUNet.from_official_state_dict(weights, variant=CASES[request.param])


def test_float64_logits_are_those_recorded(case: tuple[str, dict[str, Tensor], ACCUNet]) -> None:
    name, weights, _ = case
    image, expected = image_and_logits(name)
    with torch.no_grad():
        logits = from_official(weights, CASES[name]).double()(image.double())
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max().item() <= RECORDED_ROUNDING


def test_float32_logits_are_within_a_ten_thousandth_of_the_spread(
    case: tuple[str, dict[str, Tensor], ACCUNet],
) -> None:
    name, _, network = case
    image, expected = image_and_logits(name)
    with torch.no_grad():
        difference = (network(image) - expected).abs().max()
    assert difference.item() <= 1e-4 * (expected.max() - expected.min()).item()


def test_the_oracle_of_the_property_tests_gives_the_recorded_logits(
    case: tuple[str, dict[str, Tensor], ACCUNet],
) -> None:
    name, weights, _ = case
    image, expected = image_and_logits(name)
    literal = LiteralACCUNet(2, image.shape[1], expected.shape[1], facts(name)["n_filts"], 3, CASES[name])
    literal.load_state_dict(weights, strict=True)
    with torch.no_grad():
        logits = literal.double().eval()(image.double())
    assert (logits - expected).abs().max().item() <= RECORDED_ROUNDING


def test_arguments_are_read_from_the_shapes(case: tuple[str, dict[str, Tensor], ACCUNet]) -> None:
    name, _, network = case
    recorded = facts(name)
    classes = recorded["n_classes"]
    expected = {
        "spatial_dims": 2,
        "in_channels": recorded["in_channels"],
        "out_channels": 1 if classes == 1 else classes + 1,
        "base_filters": recorded["n_filts"],
        "mlfc_iterations": 3,
        "mlfc": CASES[name],
    }
    assert {key: network.config[key] for key in expected} == expected
    assert not network.training


def test_translation_back_gives_the_same_keys_shapes_and_values(
    case: tuple[str, dict[str, Tensor], ACCUNet],
) -> None:
    name, weights, network = case
    back = to_official(network)
    assert {key: tuple(value.shape) for key, value in back.items()} == {
        key: tuple(shape) for key, shape in facts(name)["state_dict_shapes"].items()
    }
    different = {key for key in weights if not torch.equal(back[key], weights[key])}
    assert different == ({key for key in weights if _unused_by_lite(key) and _is_drawn(key)} if name == LITE else set())


def test_what_lite_never_uses_is_written_neutral_and_changes_nothing() -> None:
    back = to_official(from_official(formula_weights(LITE), "lite"))
    for key, value in back.items():
        if _unused_by_lite(key):
            normalisation = ".conv1." not in key and ".fc" not in key
            one = key.endswith("running_var") or (normalisation and key.endswith(".weight"))
            assert torch.equal(value, torch.ones_like(value) if one else torch.zeros_like(value)), key
    image, expected = image_and_logits(LITE)
    with torch.no_grad():
        logits = from_official(back, "lite").double()(image.double())
    assert (logits - expected).abs().max().item() <= RECORDED_ROUNDING


def test_a_written_state_dict_shares_no_memory_with_the_network() -> None:
    network = from_official(formula_weights(WEIGHTED))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for value in to_official(network).values():
        value.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", [RGB, WEIGHTED])
def test_variant_is_found_without_counters(name: str) -> None:
    assert from_official(formula_weights(name)).config["mlfc"] == CASES[name]


def test_a_trained_lite_checkpoint_is_known_by_its_idle_counters() -> None:
    trained = _with_counters(LITE, lambda key: 0 if _unused_by_lite(key) else 700)
    assert from_official(trained).config["mlfc"] == "lite"


def test_a_trained_published_checkpoint_is_not_taken_for_lite() -> None:
    assert from_official(_with_counters(RGB, lambda key: 700)).config["mlfc"] == "published"


def test_a_trained_lite_checkpoint_gives_the_recorded_logits_undirected() -> None:
    image, expected = image_and_logits(LITE)
    trained = _with_counters(LITE, lambda key: 0 if _unused_by_lite(key) else 1)
    with torch.no_grad():
        logits = from_official(trained).double()(image.double())
    assert (logits - expected).abs().max().item() <= RECORDED_ROUNDING


def test_data_parallel_prefix_is_dropped() -> None:
    weights = formula_weights(RGB)
    plain = from_official(weights).state_dict()
    prefixed = from_official({f"module.{key}": value for key, value in weights.items()}).state_dict()
    assert all(torch.equal(value, prefixed[key]) for key, value in plain.items())


def test_fewer_mlfc_passes_are_counted() -> None:
    weights = {key: value for key, value in formula_weights(RGB).items() if not key.startswith(("mlfc2.", "mlfc3."))}
    network = from_official(weights)
    assert network.config["mlfc_iterations"] == 1
    assert set(to_official(network)) == set(weights)


@pytest.mark.parametrize(
    "missing",
    [
        "cnv11.conv3.weight",
        "out.weight",
        "out.bias",
        "cnv42.hnc.cnv.weight",
        "cnv42.hnc.cnv.bias",
        "rspth1.sqes.3.bn.running_var",
        "mlfc2.cnv_mrg3.0.conv1.weight",
        "mlfc3.sqe4.fc2.bias",
    ],
)
def test_a_missing_key_is_named(missing: str) -> None:
    weights = formula_weights(RGB)
    del weights[missing]
    with pytest.raises(NetworkError, match=missing.replace(".", r"\.")) as refusal:
        from_official(weights)
    assert refusal.value.code == "OFFICIAL_KEYS"


def test_a_surplus_key_is_named() -> None:
    with pytest.raises(NetworkError, match=r"cnv13\.extra") as refusal:
        from_official({**formula_weights(RGB), "cnv13.extra": torch.zeros(1)})
    assert refusal.value.code == "OFFICIAL_KEYS"


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("cnv21.conv2.weight", (24, 1, 5, 5)),
        ("cnv21.norm1.weight", (25,)),
        ("cnv21.hnc.cnv.weight", (8, 72, 1, 1)),
        ("cnv21.hnc.cnv.weight", (8, 119, 1, 1)),
        ("cnv21.conv2.weight", (0, 1, 3, 3)),
        ("mlfc1.cnv_blks2.0.conv1.weight", (16, 119, 1, 1)),
        ("mlfc1.cnv_mrg2.0.conv1.weight", (16, 31, 1, 1)),
        ("cnv11.conv3.weight", (8,)),
        ("cnv11.conv3.weight", (0, 0, 1, 1)),
        ("out.weight", ()),
    ],
)
def test_a_misshapen_tensor_is_refused(key: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(NetworkError) as refusal:
        from_official({**formula_weights(RGB), key: torch.zeros(shape)})
    assert refusal.value.code == "OFFICIAL_KEYS"


def test_the_wrong_variant_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"mlfc1\.W") as refusal:
        from_official(formula_weights(RGB), "weighted")
    assert refusal.value.code == "OFFICIAL_KEYS"
    with pytest.raises(NetworkError, match=r"mlfc1\.W"):
        from_official(formula_weights(WEIGHTED), "published")


def test_a_lite_state_dict_must_still_be_complete() -> None:
    weights = formula_weights(LITE)
    del weights["mlfc1.cnv_mrg3.0.conv1.weight"]
    with pytest.raises(NetworkError, match="cnv_mrg3") as refusal:
        from_official(weights, "lite")
    assert refusal.value.code == "OFFICIAL_KEYS"


def test_a_checkpoint_that_only_contains_the_state_dict_gets_a_hint() -> None:
    with pytest.raises(NetworkError, match="not a checkpoint that contains it"):
        from_official({"state_dict": torch.zeros(1), "epoch": torch.tensor(3)})


@pytest.mark.parametrize(
    "change", [{"norm": "instance"}, {"act": "relu"}, {"act": ("leakyrelu", {"negative_slope": 0.2})}]
)
def test_networks_without_an_official_form_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(NetworkError) as refusal:
        to_official(ACCUNet(2, 1, 1, base_filters=2, mlfc_iterations=1, **change))
    assert refusal.value.code == "OFFICIAL_VARIANT"


def _unused_by_lite(key: str) -> bool:
    return key.startswith("mlfc") and ("cnv_" in key or "bns" in key)


def _is_drawn(key: str) -> bool:
    return not key.endswith("num_batches_tracked")


def _with_counters(name: str, count: Callable[[str], int]) -> dict[str, Tensor]:
    return {
        key: torch.tensor(count(key)) if key.endswith("num_batches_tracked") else value
        for key, value in formula_weights(name).items()
    }
