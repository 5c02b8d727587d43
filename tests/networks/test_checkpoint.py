"""One file holds a network; what is no such file, or another network's, is refused with a code and its path."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from accunet_monai.errors import NetworkError
from accunet_monai.networks import ACCUNet, load_network, load_weights, save_network
from accunet_monai.networks import checkpoint as checkpoint_module
from tests.networks.randomised import calibrate, randomise


@pytest.fixture(scope="module")
def network() -> ACCUNet:
    made = randomise(ACCUNet(2, 2, 3, base_filters=2, mlfc_iterations=1, dropout=0.1, input_shape=(32, 48)), 0)
    return calibrate(made, torch.randn(2, 2, 32, 48))


@pytest.fixture
def saved(network: ACCUNet, tmp_path: Path) -> Path:
    return save_network(network, tmp_path / "model.safetensors")


def test_a_loaded_network_is_the_saved_one(network: ACCUNet, saved: Path) -> None:
    loaded = load_network(saved)
    image = torch.randn(1, 2, 32, 48)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))
    assert not loaded.training
    assert {key: value.dtype for key, value in loaded.state_dict().items()} == {
        key: value.dtype for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"spatial_dims": 2, "in_channels": 3, "out_channels": 1},
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "mlfc_iterations": 0},
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "mlfc": "weighted", "act": "relu", "dropout": 0.2},
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "mlfc": "lite", "norm": ("group", {"num_groups": 1})},
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "input_shape": (20, 30), "norm": "instance"},
    ],
)
def test_constructor_arguments_are_kept(arguments: dict[str, object], tmp_path: Path) -> None:
    network = randomise(ACCUNet(base_filters=2, **arguments), 0).eval()
    loaded = load_network(save_network(network, tmp_path / "model.safetensors"))
    assert json.dumps(loaded.config) == json.dumps(network.config)
    assert str(loaded) == str(network)
    size = [20, 30] if "input_shape" in arguments else [16] * network.spatial_dims
    image = torch.randn(1, network.in_channels, *size)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))


def test_a_loaded_network_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    again = save_network(load_network(saved), tmp_path / "again.safetensors")
    _assert_same(again, saved)


def test_the_header_carries_further_facts(network: ACCUNet, tmp_path: Path) -> None:
    path = save_network(network, tmp_path / "new" / "folder" / "model.safetensors", {"run": "abc", "seed": "7"})
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert (header["run"], header["seed"]) == ("abc", "7")
    assert json.loads(header["accunet_config"])["input_shape"] == [32, 48]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_as_float32(network: ACCUNet, dtype: torch.dtype, tmp_path: Path) -> None:
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in network.state_dict().items()}
    path = checkpoint_module.save_weights(half, tmp_path / "half.safetensors", {})
    assert {value.dtype for value in load_file(path).values()} == {dtype, torch.int64}
    target = ACCUNet(**network.config)
    load_weights(target, path)
    for key, value in target.state_dict().items():
        assert torch.equal(value, half[key].to(value.dtype)), key
    assert next(target.parameters()).dtype == torch.float32


def test_channels_last_weights_are_saved_too(network: ACCUNet, saved: Path, tmp_path: Path) -> None:
    fast = load_network(saved).to(memory_format=torch.channels_last)
    _assert_same(save_network(fast, tmp_path / "fast.safetensors"), saved)


def _assert_same(one: Path, other: Path) -> None:
    """Equal tensors and header; the bytes differ, as safetensors writes the header's entries in any order."""
    (tensors, header), (expected, header_expected) = (checkpoint_module.read_weights(path) for path in (one, other))
    assert header == header_expected
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in tensors.items())


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _not_safetensors(path: Path) -> None:
    path.write_bytes(b"\x80\x04 a pickle, perhaps" * 100)


def _endless_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


@pytest.mark.parametrize("damage", [_empty, _cut_short, _not_safetensors, _endless_header])
def test_a_damaged_file_is_refused(saved: Path, damage: Callable[[Path], None]) -> None:
    damage(saved)
    with pytest.raises(NetworkError) as refusal:
        load_network(saved)
    assert (refusal.value.code, refusal.value.path) == ("WEIGHTS_UNREADABLE", str(saved))


@pytest.mark.parametrize("name", ["nothing.safetensors", "."])
def test_a_missing_file_is_refused(network: ACCUNet, name: str, tmp_path: Path) -> None:
    for load in (load_network, lambda path: load_weights(network, path)):
        with pytest.raises(NetworkError) as refusal:
            load(tmp_path / name)
        assert (refusal.value.code, refusal.value.path) == ("WEIGHTS_MISSING", str(tmp_path / name))


def test_weights_without_arguments_load_only_into_a_given_network(network: ACCUNet, tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(network.state_dict(), path)
    with pytest.raises(NetworkError, match="load_weights") as refusal:
        load_network(path)
    assert refusal.value.code == "WEIGHTS_NO_CONFIG"
    loaded = load_weights(ACCUNet(**network.config), path)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("config", ["not json", "[]", '{"spatial_dims": 7}', '{"unknown": 1}', '"text"'])
def test_arguments_that_make_no_network_are_refused(network: ACCUNet, config: str, tmp_path: Path) -> None:
    path = checkpoint_module.save_weights(network.state_dict(), tmp_path / "x.safetensors", {"accunet_config": config})
    with pytest.raises(NetworkError) as refusal:
        load_network(path)
    assert refusal.value.code == "WEIGHTS_NO_CONFIG"


@pytest.mark.parametrize(
    ("change", "named"),
    [({"base_filters": 4}, "weight"), ({"mlfc_iterations": 2}, r"mlfc\.1"), ({"out_channels": 4}, r"head\.bias")],
)
def test_weights_of_another_network_are_refused(
    network: ACCUNet, saved: Path, change: dict[str, int], named: str
) -> None:
    other = ACCUNet(**{**network.config, **change})
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(NetworkError, match=named) as refusal:
        load_weights(other, saved)
    assert (refusal.value.code, refusal.value.path) == ("WEIGHTS_MISMATCH", str(saved))
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    network: ACCUNet, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="no space left"):
        save_network(network, saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
