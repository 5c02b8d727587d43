"""What is measured: the forms of ACC-UNet, MONAI's networks beside them, and one run of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from monai.networks.nets import BasicUNet, FlexibleUNet, SwinUNETR
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from accunet_monai.networks import ACCUNet, to_official
from accunet_monai.networks.deploy import optimize_for_inference
from tests.networks.literal import LiteralACCUNet
from tests.networks.randomised import calibrate

EVALUATION, TRAINING = "evaluation", "training"
MODES = (EVALUATION, TRAINING)
LITERAL = "literal"
PASSES_OF_TRAINING = 3
"""A training step's operations in forward passes: forward, gradients of the inputs, gradients of the weights."""
CALIBRATION_SIZE = 96
"""Pixels along each axis of the noise that sets the running statistics; larger noise has the same."""


@dataclass(frozen=True)
class Form:
    """One way to run a network.

    Attributes:
        title: as tables name it.
        modes: what it can be run for; folded forms cannot be trained.
        precision: of the convolutions, and so of the matrix product that it is compared with.
        channels_last: memory format of weights and images; else contiguous.
        folded: through ``optimize_for_inference``.
        compiled: through ``torch.compile``; the first run takes minutes.
        checkpointing: ``ACCUNet(use_checkpoint=True)``.
        peer: a network of MONAI's, for scale; its outputs are its own.
    """

    title: str
    modes: tuple[str, ...] = MODES
    precision: torch.dtype = torch.float32
    channels_last: bool = True
    folded: bool = False
    compiled: bool = False
    checkpointing: bool = False
    peer: bool = False


FORMS = {
    LITERAL: Form("literal form, contiguous", channels_last=False),
    "eager": Form("ours, contiguous", channels_last=False),
    "channels-last": Form("ours, channels-last"),
    "compiled": Form("ours, compiled", compiled=True),
    "checkpointed": Form("ours, checkpointing", (TRAINING,), checkpointing=True),
    "bf16-autocast": Form("ours, bfloat16 autocast", (TRAINING,), torch.bfloat16),
    "folded": Form("folded", (EVALUATION,), folded=True),
    "folded-bf16": Form("folded, bfloat16", (EVALUATION,), torch.bfloat16, folded=True),
    "folded-compiled": Form("folded, compiled", (EVALUATION,), folded=True, compiled=True),
    "folded-bf16-compiled": Form(
        "folded, bfloat16, compiled", (EVALUATION,), torch.bfloat16, folded=True, compiled=True
    ),
    "basicunet": Form("MONAI BasicUNet", channels_last=False, peer=True),
    "flexibleunet": Form("MONAI FlexibleUNet, efficientnet-b0", channels_last=False, peer=True),
    "swinunetr": Form("MONAI SwinUNETR", channels_last=False, peer=True),
}


@dataclass(frozen=True)
class Case:
    """One thing to measure: a form, what it is run for, on what input, how wide.

    Attributes:
        form: a key of ``FORMS``.
        mode: ``"evaluation"`` or ``"training"``.
        shape: of the input, (N, C, *spatial).
        width: ACC-UNet's ``base_filters``; MONAI's networks keep their own default widths.
        passes: ACC-UNet's ``mlfc_iterations``.
        device: ``"cpu"`` or ``"cuda"``.
    """

    form: str
    mode: str
    shape: tuple[int, ...]
    width: int = 32
    passes: int = 3
    device: str = "cpu"


def forms_of(mode: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the named forms that can be run for ``mode``, in the order of ``FORMS``."""
    wanted = set(names)
    return tuple(name for name, form in FORMS.items() if name in wanted and mode in form.modes)


def random_weights(case: Case) -> ACCUNet:
    """ACC-UNet with random weights and normalisations that let the image through to the logits."""
    torch.manual_seed(0)
    network = _acc_unet(case)
    noise = torch.randn(2, case.shape[1], *(min(size, CALIBRATION_SIZE) for size in case.shape[2:]))
    calibrate(network, noise)
    return network


def make_network(case: Case, weights: ACCUNet | None = None) -> nn.Module:
    """The case's network on its device, ready to run; with ``weights``' weights, where it is an ACC-UNet."""
    form = FORMS[case.form]
    if form.peer:
        network = _peer(case)
    elif case.form == LITERAL:
        network = LiteralACCUNet(len(case.shape) - 2, case.shape[1], 1, case.width, case.passes)
        if weights is not None:
            network.load_state_dict(to_official(weights))
    else:
        network = _acc_unet(case)
        if weights is not None:
            network.load_state_dict(weights.state_dict())
    if form.folded:
        return optimize_for_inference(network, device=case.device, dtype=form.precision, compile=form.compiled)
    network = network.to(case.device, memory_format=_memory_format(case))
    if form.compiled:
        network.compile(fullgraph=True)
    return network


def make_input(case: Case) -> Tensor:
    """The case's image, noise of seed 0, in its memory format on its device."""
    noise = torch.randn(case.shape, generator=torch.Generator().manual_seed(0))
    return noise.to(case.device).contiguous(memory_format=_memory_format(case))


def run_once(case: Case, network: nn.Module, x: Tensor) -> Tensor:
    """One evaluation → logits; or one training step → loss (the mean square of the logits)."""
    if case.mode == EVALUATION:
        with torch.inference_mode():
            logits: Tensor = network.eval()(x)
            return logits
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-6)
    precision = FORMS[case.form].precision
    with torch.autocast(x.device.type, precision, enabled=precision is not torch.float32):
        logits = network.train()(x)
    loss = logits.float().square().mean()
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return loss.detach()


def parameters(case: Case) -> int:
    """Number of trainable parameters, before anything is folded."""
    return sum(parameter.numel() for parameter in _plain_network(case).parameters())


def multiply_accumulates(case: Case) -> float:
    """Multiply-accumulates of convolutions and matrix products for one image forward, as the form is defined.

    Checkpointing computes more than that and fusing may compute less; neither is counted.
    """
    network = _plain_network(case).eval()
    x = torch.empty(1, *case.shape[1:], device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return counter.get_total_flops() / 2


def operations(case: Case, macs: float) -> float:
    """Floating point operations of one run: two a multiply-accumulate, for all images, thrice in training."""
    return 2 * macs * case.shape[0] * (PASSES_OF_TRAINING if case.mode == TRAINING else 1)


def _plain_network(case: Case) -> nn.Module:
    """The network as defined; ACC-UNet without memory for its weights (SwinUNETR reads numbers from its tensors)."""
    if FORMS[case.form].peer:
        return _peer(case)
    with torch.device("meta"):
        if case.form == LITERAL:
            return LiteralACCUNet(len(case.shape) - 2, case.shape[1], 1, case.width, case.passes)
        return _acc_unet(case)


def _acc_unet(case: Case) -> ACCUNet:
    dims, channels = len(case.shape) - 2, case.shape[1]
    return ACCUNet(dims, channels, 1, case.width, case.passes, use_checkpoint=FORMS[case.form].checkpointing)


def _peer(case: Case) -> nn.Module:
    dims, channels = len(case.shape) - 2, case.shape[1]
    if case.form == "basicunet":
        return BasicUNet(spatial_dims=dims, in_channels=channels, out_channels=1)
    if case.form == "flexibleunet":
        return FlexibleUNet(channels, 1, "efficientnet-b0", pretrained=False, spatial_dims=dims)
    return SwinUNETR(in_channels=channels, out_channels=1, spatial_dims=dims)


def _memory_format(case: Case) -> torch.memory_format:
    if not FORMS[case.form].channels_last:
        return torch.contiguous_format
    return torch.channels_last if len(case.shape) == 4 else torch.channels_last_3d
