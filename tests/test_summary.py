"""Weights put into a bundle: only those that fit, whole or not at all, in half precision where asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from accunet_monai.bundle import find_bundle, load_bundle, read_manifest, verify_bundle, write_manifest
from accunet_monai.errors import NetworkError
from accunet_monai.networks import ACCUNet, save_network
from accunet_monai.networks.checkpoint import read_weights
from accunet_monai.summary import install_weights
from tests.made_bundle import copied_bundle

HALF_ROUNDING = 2.0**-11
"""Largest relative rounding of float16, for values in its normal range."""
HALF_SMALLEST = 2.0**-25
"""Largest rounding of values below that range."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copied_bundle(find_bundle("hippocampus_mri"), tmp_path)


@pytest.fixture
def trained(bundle: Path, tmp_path: Path) -> Path:
    """Other weights that fit the bundle's network, as training writes them."""
    torch.manual_seed(0)
    network = ACCUNet(**load_bundle(bundle).network.config)
    return save_network(network, tmp_path / "best.safetensors", {"val_mean_dice": "0.9"})


def test_the_bundle_has_the_trained_weights_and_their_header(bundle: Path, trained: Path) -> None:
    written = install_weights(bundle, trained)
    assert written == bundle / "models" / "model.safetensors"
    expected, header = read_weights(trained)
    found, found_header = read_weights(written)
    assert found_header == header
    assert found_header["val_mean_dice"] == "0.9"
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    weight = load_bundle(bundle).network.state_dict()["head.weight"]
    assert torch.equal(weight, expected["head.weight"])


def test_half_rounds_kernels_and_nothing_else(bundle: Path, trained: Path) -> None:
    written = install_weights(bundle, trained, half=True)
    assert written.stat().st_size < 0.6 * trained.stat().st_size
    stored, (expected, _) = load_file(written), read_weights(trained)
    for key, value in expected.items():
        if value.dim() > 1:
            assert stored[key].dtype == torch.float16
            torch.testing.assert_close(stored[key].float(), value, rtol=HALF_ROUNDING, atol=HALF_SMALLEST)
        else:
            assert torch.equal(stored[key], value), key
    assert load_bundle(bundle).network.head.weight.dtype == torch.float32


def test_weights_of_another_network_are_refused_and_nothing_changes(bundle: Path, tmp_path: Path) -> None:
    before = (bundle / "models" / "model.safetensors").read_bytes()
    other = save_network(ACCUNet(2, 1, 3, base_filters=4), tmp_path / "other.safetensors")
    with pytest.raises(NetworkError, match="WEIGHTS_MISMATCH"):
        install_weights(bundle, other)
    assert (bundle / "models" / "model.safetensors").read_bytes() == before


def test_the_manifest_is_renewed_with_the_weights(bundle: Path, trained: Path) -> None:
    install_weights(bundle, trained)
    assert read_manifest(bundle) is None  # none is made where there was none
    write_manifest(bundle, mlflow_run="of the old weights")
    other = ACCUNet(**load_bundle(bundle).network.config)
    install_weights(
        bundle, save_network(other, trained.with_name("other.safetensors"), {"mlflow_run": "abc"}), half=True
    )
    verify_bundle(bundle)
    manifest = read_manifest(bundle)
    assert manifest is not None
    assert manifest.mlflow_run == "abc"
