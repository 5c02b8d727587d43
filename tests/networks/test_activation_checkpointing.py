"""Activation checkpointing costs time and saves memory; it changes nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accunet_monai.networks import ACCUNet

SIZES = {2: (2, 3, 32, 48), 3: (2, 3, 16, 16, 32)}


def twins(spatial_dims: int, **arguments: Any) -> tuple[ACCUNet, ACCUNet]:
    """The same network, without and with checkpointing."""
    torch.manual_seed(0)
    plain = ACCUNet(spatial_dims, 3, 2, base_filters=4, **arguments)
    thrifty = ACCUNet(spatial_dims, 3, 2, base_filters=4, use_checkpoint=True, **arguments)
    thrifty.load_state_dict(plain.state_dict())
    return plain, thrifty


def bytes_kept(network: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass in training keeps for the backward pass, each memory block counted once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    blocks: dict[int, Tensor] = {}  # holds the tensors, so that no address is given out twice

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            blocks[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in blocks.values())


@pytest.mark.parametrize(
    ("spatial_dims", "arguments"),
    [(2, {}), (3, {}), (2, {"mlfc": "weighted"}), (2, {"norm": ("instance", {"affine": True})})],
    ids=["2D", "3D", "weighted", "instance norm"],
)
def test_gradients_and_running_statistics_are_the_same(spatial_dims: int, arguments: dict[str, Any]) -> None:
    plain, thrifty = twins(spatial_dims, **arguments)
    for step in range(2):
        x = torch.randn(SIZES[spatial_dims], generator=torch.Generator().manual_seed(step))
        for network in (plain, thrifty):
            network(x).square().mean().backward()

    for (name, one), other in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-6 * float(one.grad.abs().max()), msg=name)
    for (name, one), other in zip(plain.named_buffers(), thrifty.named_buffers(), strict=True):
        assert name == other[0]
        assert torch.equal(other[1], one), f"{name} counted a batch twice"


def test_dropout_draws_the_same_channels_in_both() -> None:
    plain, thrifty = twins(2, dropout=0.5)
    x = torch.randn(SIZES[2])
    gradients = []
    for network in (plain, thrifty):
        torch.manual_seed(7)
        network(x).square().mean().backward()
        gradients.append(network.encoder[0][0].expand.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_less_than_a_third_is_kept_for_the_backward_pass() -> None:
    plain, thrifty = twins(2)
    x = torch.randn(SIZES[2])
    assert bytes_kept(thrifty, x) < bytes_kept(plain, x) / 3


def test_evaluation_keeps_what_is_needed_for_gradients_of_the_image() -> None:
    plain, thrifty = twins(2)
    images = [torch.randn(SIZES[2], generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    for network, image in zip((plain, thrifty), images, strict=True):
        network.eval()(image).square().mean().backward()
    torch.testing.assert_close(images[1].grad, images[0].grad, rtol=0, atol=0)


def test_it_scripts_and_compiles_without_graph_breaks() -> None:
    _, thrifty = twins(2)
    x = torch.randn(SIZES[2])
    expected = copy.deepcopy(thrifty)(x)
    compiled = torch.compile(copy.deepcopy(thrifty), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.script(copy.deepcopy(thrifty))(x), expected, rtol=1e-4, atol=1e-5)
