"""The same network for inference only: norms folded away, channels-last, in a chosen precision, compiled if wanted.

In evaluation mode a batch norm is one scale and one shift a channel. Each goes where it costs least, exactly:

- after a convolution (a sum of convolutions included): into that convolution's weights and bias;
- before a 1×1 convolution, as HANC's residual norm is: into that convolution too;
- after a channel gate: one multiply-add with the gate times the scale;
- between two activations: one multiply-add.

The expanded channels of a HANC block do not mix before its 1×1 contraction, which is linear. So a wide block runs in
chunks of them, whose contributions are added at each scale; its expanded tensor is never held whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from accunet_monai.networks.blocks import HANCBlock, ResPath, SqueezeExcitation, sum_coarse_to_fine
from accunet_monai.networks.compiled import CompiledNetwork
from accunet_monai.networks.gpu import GraphedNetwork
from accunet_monai.networks.mlfc import MLFCLevel

CHUNK_EXPANSION = 6
"""Expanded channels that run at once, in multiples of a block's input channels.

The first block of a decoder stage expands 2C channels to 6C, so no chunk of the second one holds more than that.
"""

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_Convolution = nn.modules.conv._ConvNd


def optimize_for_inference(
    network: nn.Module,
    example_shape: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    compile: bool = False,  # noqa: A002 (torch's own word)
    cuda_graph: bool = False,
) -> InferenceNetwork:
    """A fast copy of ``network`` for inference; ``network`` itself stays as it is.

    Every block of this package inside it is folded, whatever network they are part of; other modules are taken over in
    evaluation mode. Folding computes in float64 and rounds once to ``dtype``.

    Args:
        network: an :class:`~accunet_monai.networks.ACCUNet`, or any network built of its blocks.
        example_shape: (N, C, *spatial) of one image batch; given, zeros of this shape are run once, so that the first
            real call pays for no compilation. On a GPU, without ``compile``, every HANC block is timed at its own shape
            as it is and fused into one kernel, and the faster form stays (:func:`accunet_monai.networks.gpu.choices`).
        device: where the copy lives.
        dtype: precision of weights and feature maps. Channel gates are computed in float32 at least. float16 overflows
            where a feature map exceeds 65504; bfloat16 does not.
        compile: compile with ``torch.compile`` at the first call of each grad mode, with the weights as constants
            where no gradients are asked for: changed weights want a new copy.
        cuda_graph: record a CUDA graph for images of ``example_shape``; other shapes run without one.

    Raises:
        ValueError: for a block whose norm is not a batch norm with running statistics, for a dtype that is not one of
            ``PRECISIONS`` or that PyTorch cannot run on the device (3D in half precision on the CPU), for a CUDA graph
            without a CUDA device or ``example_shape`` or with ``compile``, and, with ``example_shape``, for whatever
            the network itself refuses.

    Example:
        >>> from accunet_monai.networks import ACCUNet
        >>> fast = optimize_for_inference(ACCUNet(2, in_channels=1, out_channels=3, base_filters=4))
        >>> fast(torch.zeros(1, 1, 33, 47)).shape
        torch.Size([1, 3, 33, 47])
    """
    device = torch.device(device)
    _check_precision(network, dtype, device)
    if cuda_graph and (device.type != "cuda" or example_shape is None or compile):
        raise ValueError(
            "cuda_graph takes a CUDA device, an example_shape and compile=False, "
            f"got {device}, {example_shape} and compile={compile}"
        )
    folded = _fold(copy.deepcopy(network).cpu().double())
    _arrange(folded, dtype)
    optimized = InferenceNetwork(folded, dtype).to(device).eval().requires_grad_(False)
    if compile:
        optimized.network = CompiledNetwork(optimized.network)
    if example_shape is not None:
        example = torch.zeros(*example_shape, device=device)
        if device.type == "cuda" and not compile:
            from accunet_monai.networks.fused import use_fused_blocks  # imports this module

            use_fused_blocks(optimized, example_shape, device, cuda_graph)
        if cuda_graph:
            optimized.network = GraphedNetwork(optimized.network, _channels_last(example.to(dtype)))
        with torch.inference_mode():
            optimized(example)
    return optimized


class InferenceNetwork(nn.Module):
    """A folded network that takes images of any floating point dtype. Made by :func:`optimize_for_inference`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, *spatial), floating point → logits (N, classes, *spatial) in the image's dtype.

        Raises:
            ValueError: for an image of another dtype, and whatever the network itself refuses.
        """
        if not torch.is_floating_point(x):
            raise ValueError(f"expected a floating point image, found {x.dtype}")
        logits: Tensor = self.network(_channels_last(x.to(self.dtype)))
        return logits.to(x.dtype)

    @torch.jit.export
    def probabilities(self, x: Tensor) -> Tensor:
        """Image (N, C, *spatial) → sigmoid of one channel, or softmax over several, same shape as logits."""
        logits = self(x)
        return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, 1)


class FoldedSqueezeExcitation(nn.Module):
    """:class:`SqueezeExcitation` with its norm in the gate: ``act(x * (gate * scale) + shift)``."""

    def __init__(self, original: SqueezeExcitation) -> None:
        super().__init__()
        scale, shift = _scale_and_shift(original.norm)
        self.gate = _ScaledGate(original, scale)
        self.shift = nn.Parameter(shift)
        self.act = original.act

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) → the same shape."""
        scale = self.gate(x.flatten(2).mean(-1)).to(x.dtype)
        gated: Tensor = self.act(_multiply_add(x, scale, self.shift))
        return gated


class FoldedHANCBlock(nn.Module):
    """:class:`HANCBlock` without norms, in chunks of its expanded channels.

    Args:
        original: the block, in float64.
        chunk_expansion: expanded channels that run at once, in multiples of the input channels.
    """

    def __init__(self, original: HANCBlock, chunk_expansion: int = CHUNK_EXPANSION) -> None:
        super().__init__()
        expanded, size = original.expand.out_channels, chunk_expansion * original.expand.in_channels
        self.chunks = nn.ModuleList(
            _HANCChunk(original, slice(start, min(start + size, expanded))) for start in range(0, expanded, size)
        )
        self.act, self.hanc_act = original.act, original.hanc.act
        project = _convolution(original.project, *_after_norm(original.residual_norm, original.project))
        self.project = _convolution(project, *_normed(project, original.project_norm))
        self.squeeze = FoldedSqueezeExcitation(original.squeeze)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) → (N, out_channels, *spatial)."""
        scales: list[Tensor] = []
        for chunk in self.chunks:
            parts: list[Tensor] = chunk(x)
            for index, part in enumerate(parts):
                if index < len(scales):
                    scales[index] = scales[index].add_(part)
                else:
                    scales.append(part)
        mixed = self.hanc_act(sum_coarse_to_fine(scales)) + x
        squeezed: Tensor = self.squeeze(self.act(self.project(mixed)))
        return squeezed


class FoldedResPath(nn.Module):
    """:class:`ResPath` with the norms of its convolutions and gates folded; its last two stay as multiply-adds."""

    def __init__(self, original: ResPath) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        block: Any
        for block in original.blocks:
            convolution, norm, act, squeeze = block.children()
            self.blocks.append(
                nn.Sequential(
                    _convolution(convolution, *_normed(convolution, norm)), act, FoldedSqueezeExcitation(squeeze)
                )
            )
        self.norm = _Affine(original.norm)
        self.act = original.act
        self.final_norm = _Affine(original.final_norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) → the same shape."""
        for block in self.blocks:
            x = block(x) + x
        normed: Tensor = self.final_norm(self.act(self.norm(x)))
        return normed


class FoldedMLFCLevel(nn.Module):
    """:class:`MLFCLevel` with the norms of its convolutions and gates folded; ``merge_norm`` takes in the sum."""

    def __init__(self, original: MLFCLevel) -> None:
        super().__init__()
        compile_norm, merge_norm = original.compile_unit.norm, original.merge_unit.norm
        self.compile_finer = _convolution(original.compile_finer, *_normed(original.compile_finer, compile_norm))
        self.compile_coarser = nn.ModuleList(
            _convolution(part, _normed(part, compile_norm)[0]) for part in original.compile_coarser
        )
        self.compile_act, self.merge_act = original.compile_unit.act, original.merge_unit.act
        self.compile_squeeze = FoldedSqueezeExcitation(original.compile_unit.squeeze)
        self.compile_norm = _Affine(original.compile_norm)
        self.merge = _convolution(original.merge, *_normed(original.merge, merge_norm))
        self.merge_squeeze = FoldedSqueezeExcitation(original.merge_unit.squeeze)
        self.merge_norm = _Affine(original.merge_norm)
        self.act = original.act
        self.squeeze = FoldedSqueezeExcitation(original.squeeze)

    def forward(self, own: Tensor, gathered: Tensor, coarser: list[Tensor], weight: Tensor | None = None) -> Tensor:
        """As :meth:`MLFCLevel.forward`."""
        compiled = [self.compile_finer(gathered)]
        for index, project in enumerate(self.compile_coarser):
            compiled.append(project(coarser[index]))
        compiled_map = self.compile_squeeze(self.compile_act(sum_coarse_to_fine(compiled)))
        compiled_map = self.act(self.compile_norm(compiled_map))
        merged = self.merge_squeeze(self.merge_act(self.merge(torch.cat([compiled_map, own], 1))))
        total = merged + own if weight is None else torch.lerp(own, merged, weight)
        fused: Tensor = self.squeeze(self.act(self.merge_norm(total)))
        return fused


class _ScaledGate(nn.Module):
    """Channel means (N, C) → gates times the folded norm's scale (N, C), in float32 at least."""

    def __init__(self, original: SqueezeExcitation, scale: Tensor) -> None:
        super().__init__()
        self.fc1, self.fc2 = original.fc1, original.fc2
        self.act = copy.deepcopy(original.act)  # one that has weights keeps them in this module's precision
        self.scale = nn.Parameter(scale)

    def forward(self, mean: Tensor) -> Tensor:
        hidden = self.act(self.fc1(mean.to(self.scale.dtype)))
        return torch.sigmoid(self.fc2(hidden)) * self.scale


class _HANCChunk(nn.Module):
    """Some of a HANC block's expanded channels: expansion, depthwise convolution, contraction at each scale."""

    def __init__(self, original: HANCBlock, channels: slice) -> None:
        super().__init__()
        expand, depthwise, hanc = original.expand, original.depthwise, original.hanc
        weight, bias = _normed(expand, original.expand_norm)
        self.expand = _convolution(expand, weight[channels], bias[channels])
        weight, bias = _normed(depthwise, original.depthwise_norm)
        self.depthwise = _convolution(depthwise, weight[channels], bias[channels])
        weight, bias = _normed(hanc.own, hanc.norm)
        self.own = _convolution(hanc.own, weight[:, channels], bias if channels.start == 0 else None)
        self.pooled = nn.ModuleList()
        for part in hanc.pooled:
            average, maximum = _normed(part, hanc.norm)[0].chunk(2, 1)
            self.pooled.append(_convolution(part, torch.cat([average[:, channels], maximum[:, channels]], 1)))
        self.average_pool, self.max_pool = hanc.average_pool, hanc.max_pool
        self.act = original.act

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, *spatial) → the contribution to each scale (N, in_channels, *spatial / 2^scale)."""
        expanded = self.act(self.depthwise(self.act(self.expand(x))))
        parts = [self.own(expanded)]
        average, maximum = expanded, expanded
        for project in self.pooled:
            average, maximum = self.average_pool(average), self.max_pool(maximum)
            parts.append(project(torch.cat([average, maximum], 1)))
        return parts


class _Affine(nn.Module):
    """A batch norm that no convolution can take in: ``x * scale + shift``."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        scale, shift = _scale_and_shift(norm)
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return _multiply_add(x, self.scale, self.shift)


def _multiply_add(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` in one pass over x (N, C, *spatial); scale and shift are (C,) or (N, C)."""
    shape = [-1, x.shape[1]] + [1] * (x.dim() - 2)
    if not is_scripting():  # noqa: SIM102 (TorchScript)
        if torch.compiler.is_exporting():  # torch.export knows channels-last addcmul for some sizes only
            return x * scale.reshape(shape) + shift.reshape(shape)
    return torch.addcmul(shift.reshape(shape), x, scale.reshape(shape))


def _check_precision(network: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype must be one of {', '.join(map(str, PRECISIONS))}, got {dtype}")
    has_3d = any(isinstance(module, nn.Conv3d) for module in network.modules())
    if has_3d and device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        raise ValueError(f"PyTorch has no 3D average pooling in {dtype} on the CPU; use torch.float32")


def _fold(module: nn.Module) -> nn.Module:
    """``module``, in float64, with every block of this package replaced by its folded twin, at any depth."""
    if isinstance(module, HANCBlock):
        return FoldedHANCBlock(module)
    if isinstance(module, ResPath):
        return FoldedResPath(module)
    if isinstance(module, MLFCLevel):
        return FoldedMLFCLevel(module)
    if isinstance(module, SqueezeExcitation):
        return FoldedSqueezeExcitation(module)
    for name, child in module.named_children():
        module.add_module(name, _fold(child))
    return module


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch norm does in evaluation mode: ``x * scale + shift``, each (C,)."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"only batch norms with running statistics can be folded, found {norm}")
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def _normed(convolution: Any, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the norm after it."""
    scale, shift = _scale_and_shift(norm)
    weight: Tensor = convolution.weight.detach()
    bias = shift if convolution.bias is None else scale * convolution.bias.detach() + shift
    return scale.reshape([-1] + [1] * (weight.dim() - 1)) * weight, bias


def _after_norm(norm: nn.Module, convolution: _Convolution) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 1×1 convolution and the norm before it.

    Exact for 1×1 only: a larger one pads with zeros, which the shift does not reach.
    """
    scale, shift = _scale_and_shift(norm)
    matrix = convolution.weight.detach().flatten(1)
    bias = matrix @ shift if convolution.bias is None else convolution.bias.detach() + matrix @ shift
    return (matrix * scale).reshape(convolution.weight.shape), bias


def _convolution(like: Any, weight: Tensor, bias: Tensor | None = None) -> _Convolution:
    """A convolution as ``like`` with other weights, and as many channels as these have."""
    groups = weight.shape[0] if like.groups > 1 else 1
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        made: _Convolution = Conv[Conv.CONV, weight.dim() - 2](
            weight.shape[1] * groups, weight.shape[0], like.kernel_size, padding=like.padding, groups=groups, bias=False
        )
    made.weight = nn.Parameter(weight.detach().clone())
    made.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return made


def _arrange(network: nn.Module, dtype: torch.dtype) -> None:
    """Set every tensor's precision (gates: float32 at least) and the convolutions' memory format, in place."""
    gates = {part for module in network.modules() if isinstance(module, _ScaledGate) for part in module.modules()}
    for module in network.modules():
        precision = torch.promote_types(dtype, torch.float32) if module in gates else dtype
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = _channels_last(tensor.data.to(precision))


def _channels_last(x: Tensor) -> Tensor:
    """The same values with channels last in memory, where there are two or three spatial axes."""
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if x.dim() == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x
