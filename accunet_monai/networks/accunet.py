"""ACC-UNet (Ibtehaz & Kihara, "ACC-UNet: A Completely Convolutional UNet Model for the 2020s", MICCAI 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from accunet_monai.networks.blocks import LEAKY_RELU, ActivationSpec, HANCBlock, NormSpec, ResPath
from accunet_monai.networks.mlfc import MLFCLayer, MLFCVariant

ENCODER_SCALES = (3, 3, 3, 2, 1)
"""HANC's k on the way down (paper, section 3.4), bottleneck last."""
DECODER_SCALES = (2, 3, 3, 3)
"""HANC's k on the way up, coarse to fine."""
RESIDUAL_BLOCKS = (4, 3, 2, 1)
"""Residual blocks in the skip connections, fine to coarse."""
EXPANSION = 3
WIDE_EXPANSION = 34
"""Expansion of the second block of the decoder stage with ``4 * base_filters`` channels, as published."""
SIZE_MULTIPLE = 16
"""Four times halved; at every level the size is then a multiple of that level's HANC block too."""


class ACCUNet(nn.Module):
    """ACC-UNet in the manner of MONAI's networks. Returns logits.

    Any spatial size is taken: inputs are padded at their ends by edge values to a multiple of 16 and the output is
    cropped; sizes that are multiples of 16 pass unchanged.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits: 1 for a binary task (sigmoid), else one a class with background (softmax).
        base_filters: width of the first level; level i has ``base_filters * 2**i`` channels.
        mlfc_iterations: number of MLFC passes over the skip features; 0 leaves them out.
        act: activation, as MONAI's ``get_act_layer`` takes it.
        norm: normalisation, as MONAI's ``get_norm_layer`` takes it.
        dropout: probability of channel dropout in every HANC block.
        mlfc: ``"published"``, ``"lite"`` or ``"weighted"``, see :class:`MLFCLayer`.
        input_shape: spatial shape; given, any other shape is refused with a ``ValueError``.
        use_checkpoint: in training, compute the HANC blocks' expanded channels and the MLFC levels a second time in the
            backward pass instead of keeping them; same gradients, less memory, more time (see docs/performance.md).

    Raises:
        ValueError: on construction for impossible arguments; in ``forward`` for input of other rank, channels, dtype or
            (with ``input_shape``) size, naming what was expected and found.

    Example:
        >>> network = ACCUNet(spatial_dims=2, in_channels=1, out_channels=3, base_filters=8).eval()
        >>> network(torch.zeros(1, 1, 33, 47)).shape
        torch.Size([1, 3, 33, 47])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        base_filters: int = 32,
        mlfc_iterations: int = 3,
        act: ActivationSpec = LEAKY_RELU,
        norm: NormSpec = "batch",
        dropout: float = 0.0,
        mlfc: MLFCVariant = "published",
        input_shape: Sequence[int] | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        _check_arguments(spatial_dims, in_channels, out_channels, base_filters, mlfc_iterations, dropout, input_shape)
        config: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "base_filters": base_filters,
            "mlfc_iterations": mlfc_iterations,
            "act": act,
            "norm": norm,
            "dropout": dropout,
            "mlfc": mlfc,
            "input_shape": None if input_shape is None else list(input_shape),
            "use_checkpoint": use_checkpoint,
        }
        self.config = config  # without an annotation here: TorchScript warns of it
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.input_shape = [0] * spatial_dims if input_shape is None else list(input_shape)  # 0: any size

        width = [base_filters * 2**level for level in range(5)]
        style: dict[str, Any] = {"act": act, "norm": norm}
        block: dict[str, Any] = {**style, "dropout": dropout, "use_checkpoint": use_checkpoint}
        self.pool = Pool[Pool.MAX, spatial_dims](2)
        self.encoder = nn.ModuleList()
        for level, k in enumerate(ENCODER_SCALES):
            before = width[level - 1] if level else in_channels
            self.encoder.append(_stage(spatial_dims, before, width[level], k, EXPANSION, block))
        self.skips = nn.ModuleList(
            ResPath(spatial_dims, width[level], blocks, **style) for level, blocks in enumerate(RESIDUAL_BLOCKS)
        )
        self.mlfc = nn.ModuleList(
            MLFCLayer(spatial_dims, width[:4], variant=mlfc, use_checkpoint=use_checkpoint, **style)
            for _ in range(mlfc_iterations)
        )
        self.upsample = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, k in zip((3, 2, 1, 0), DECODER_SCALES, strict=True):
            transposed = Conv[Conv.CONVTRANS, spatial_dims]
            self.upsample.append(transposed(width[level + 1], width[level], 2, stride=2))
            second = WIDE_EXPANSION if level == 2 else EXPANSION
            self.decoder.append(_stage(spatial_dims, 2 * width[level], width[level], k, second, block))
        self.head = Conv[Conv.CONV, spatial_dims](base_filters, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, in_channels, *spatial), floating point → logits (N, out_channels, *spatial)."""
        self._check_input(x)
        size = list(x.shape[2:])
        x = _pad_to_multiple(x)
        features: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            x = stage(x if level == 0 else self.pool(x))
            features.append(x)
        skips: list[Tensor] = []
        for level, path in enumerate(self.skips):
            skips.append(path(features[level]))
        for compile_levels in self.mlfc:
            skips = compile_levels(skips)
        for step, (upsample, stage) in enumerate(zip(self.upsample, self.decoder)):  # noqa: B905 (TorchScript)
            x = stage(torch.cat([upsample(x), skips[3 - step]], 1))
        return _crop(self.head(x), size)

    @torch.jit.export
    def probabilities(self, x: Tensor) -> Tensor:
        """Image (N, in_channels, *spatial) → sigmoid of one channel, or softmax over several, same shape as logits."""
        logits = self.forward(x)
        return torch.sigmoid(logits) if self.out_channels == 1 else torch.softmax(logits, 1)

    @classmethod
    @torch.jit.unused
    def from_official_state_dict(cls, state_dict: Mapping[str, Tensor], variant: MLFCVariant | None = None) -> ACCUNet:
        """The network of the authors' ``state_dict``, see :func:`accunet_monai.networks.official.from_official`."""
        from accunet_monai.networks.official import from_official

        return from_official(state_dict, variant)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"ACCUNet expects {self.spatial_dims + 2} axes (batch, channel, {self.spatial_dims} spatial), "
                f"found {x.dim()}"
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(f"ACCUNet expects {self.in_channels} input channels, found {x.shape[1]}")
        if not torch.is_floating_point(x):
            raise ValueError(f"ACCUNet expects a floating point image, found {x.dtype}")
        if not is_scripting():  # noqa: SIM102 (TorchScript)
            if x.dtype != self.head.weight.dtype and not torch.is_autocast_enabled(x.device.type):
                raise ValueError(f"ACCUNet expects {self.head.weight.dtype} as its weights are, found {x.dtype}")
        for axis, expected in enumerate(self.input_shape):
            if expected != 0 and x.shape[axis + 2] != expected:
                raise ValueError(f"ACCUNet was made for spatial shape {self.input_shape}, found {x.shape[2:]}")


def create_acc_unet(
    input_channels: int,
    num_classes: int,
    input_shape: Sequence[int] | None = None,
    base_filters: int = 32,
    mlfc_iterations: int = 3,
) -> ACCUNet:
    """2D ACC-UNet for ``num_classes``: 1 makes it binary (sigmoid), more make it multi-class (softmax).

    Args:
        input_channels: channels of the image, e.g. 1 for grey, 3 for RGB.
        num_classes: channels of the logits; for several classes count the background in.
        input_shape: spatial shape (height, width); any other is then a ``ValueError``. ``None`` takes any.
        base_filters: width of the first level.
        mlfc_iterations: number of MLFC passes.
    """
    return ACCUNet(
        spatial_dims=2,
        in_channels=input_channels,
        out_channels=num_classes,
        base_filters=base_filters,
        mlfc_iterations=mlfc_iterations,
        input_shape=input_shape,
    )


def create_acc_unet_binary(
    input_channels: int,
    num_classes: int = 1,
    input_shape: Sequence[int] | None = None,
    base_filters: int = 32,
    mlfc_iterations: int = 3,
) -> ACCUNet:
    """2D ACC-UNet with one output channel (sigmoid); ``num_classes`` other than 1 is a ``ValueError``."""
    if num_classes != 1:
        raise ValueError(f"a binary network has exactly 1 output channel, got num_classes={num_classes}")
    return create_acc_unet(input_channels, 1, input_shape, base_filters, mlfc_iterations)


def create_acc_unet_multiclass(
    input_channels: int,
    num_classes: int,
    input_shape: Sequence[int] | None = None,
    base_filters: int = 32,
    mlfc_iterations: int = 3,
) -> ACCUNet:
    """2D ACC-UNet with one output channel a class, background included (softmax); fewer than 2 is a ``ValueError``."""
    if num_classes < 2:
        raise ValueError(f"a multi-class network has at least 2 classes, background included, got {num_classes}")
    return create_acc_unet(input_channels, num_classes, input_shape, base_filters, mlfc_iterations)


def weight_decay_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: ``decay`` on convolution kernels, none on biases, norms and gates.

    Args:
        network: any module.
        decay: the weight decay of the convolution kernels.

    Returns:
        Two groups that together hold every trainable parameter once.
    """
    kernels: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_kernel = isinstance(module, nn.modules.conv._ConvNd) and name == "weight"
                (kernels if is_kernel else others).append(parameter)
    return [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def _stage(
    spatial_dims: int, before: int, after: int, k: int, second_expansion: int, block: dict[str, Any]
) -> nn.Sequential:
    """Two HANC blocks: ``before`` channels in, ``after`` channels out.

    The first block keeps the published expansion of 3.
    """
    return nn.Sequential(
        HANCBlock(spatial_dims, before, after, k, EXPANSION, **block),
        HANCBlock(spatial_dims, after, after, k, second_expansion, **block),
    )


def _pad_to_multiple(x: Tensor, multiple: int = SIZE_MULTIPLE) -> Tensor:
    """Pad each spatial axis at its end by edge values up to a multiple of 16.

    No branch on size, and the padded size is written as 16 times a rounded-up quotient: so ``torch.export`` can prove
    that every level's size divides, for all sizes from 17 on.
    """
    pad: list[int] = []
    for axis in range(x.dim() - 1, 1, -1):
        size = x.shape[axis]
        pad += [0, (size + multiple - 1) // multiple * multiple - size]
    return F.pad(x, pad, mode="replicate")


def _crop(x: Tensor, size: list[int]) -> Tensor:
    """The first ``size`` elements along each spatial axis, by negative pads: a slice exports for some sizes only."""
    pad: list[int] = []
    for axis in range(x.dim() - 1, 1, -1):
        pad += [0, size[axis - 2] - x.shape[axis]]
    return F.pad(x, pad)


def _check_arguments(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    base_filters: int,
    mlfc_iterations: int,
    dropout: float,
    input_shape: Sequence[int] | None,
) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    for name, value, least in (
        ("in_channels", in_channels, 1),
        ("out_channels", out_channels, 1),
        ("base_filters", base_filters, 1),
        ("mlfc_iterations", mlfc_iterations, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if input_shape is not None and (len(input_shape) != spatial_dims or min(input_shape) < 1):
        raise ValueError(f"input_shape must have {spatial_dims} positive sizes, got {list(input_shape)}")
