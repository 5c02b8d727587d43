"""Translation between the authors' PyTorch ``state_dict`` and ours, both ways and strictly.

Only key names and shapes are translated, as recorded in ``tests/parity/README.md``. Two layouts differ: the authors'
HANC and MLFC convolutions see interleaved or concatenated copies of all scales at once, ours one scale at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from accunet_monai.errors import NetworkError
from accunet_monai.networks.accunet import ACCUNet
from accunet_monai.networks.mlfc import MLFCVariant

_NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_CONV_PARTS = ("weight", "bias")
_LEVELS = 4

_State = dict[str, Tensor]


def from_official(state_dict: Mapping[str, Tensor], variant: MLFCVariant | None = None) -> ACCUNet:
    """Build the network that a ``state_dict`` of the authors belongs to, with its weights, in evaluation mode.

    Channels, classes, width and the number of MLFC passes come from the shapes. The variant: learned ``W`` scalars make
    it "weighted". Published and Lite checkpoints have the same keys and shapes; Lite never ran the normalisations of
    its MLFC convolutions, so in a trained Lite checkpoint their ``num_batches_tracked`` is 0 and others' is not. Where
    no counter was ever raised, the published network is assumed; say ``variant="lite"`` then.

    Args:
        state_dict: the authors' tensors by key; a ``module.`` prefix (``DataParallel``) is dropped. The authors have
            only a 2D network; one more spatial axis in every kernel makes a 3D one by the same rules.
        variant: overrules the detection.

    Raises:
        NetworkError: ``OFFICIAL_KEYS`` when keys or shapes are not those of an ACC-UNet.
    """
    official = {key.removeprefix("module."): value for key, value in state_dict.items()}
    arguments = _read_arguments(official, variant)
    with torch.device("meta"):
        expected = to_official(ACCUNet(**arguments))
    _check_keys_and_shapes(official, expected)
    network = ACCUNet(**arguments)
    network.load_state_dict(_translate(official, network), strict=True)
    return network.eval()


def to_official(network: ACCUNet) -> _State:
    """The network's weights under the authors' keys and shapes.

    For "lite", the parameters that the authors' Lite holds and never uses are written as the identity normalisation
    and zero convolutions. A 3D network, which the authors do not have, is written by the same rules.

    Raises:
        NetworkError: ``OFFICIAL_VARIANT`` for norms or activations that the authors' keys cannot tell of.
    """
    if not _has_official_form(network):
        raise NetworkError("OFFICIAL_VARIANT", "only batch norm with LeakyReLU(0.01) has an official form.")
    ours = network.state_dict()
    official: _State = {}
    for theirs, mine in _plain_keys(network):
        official[theirs] = ours[mine]
    for block, path in _hanc_blocks():
        k = len([key for key in ours if key.startswith(f"{path}.hanc.pooled.")]) + 1
        official[f"{block}.hnc.cnv.weight"] = _interleave_scales(ours, f"{path}.hanc", k)
        official[f"{block}.hnc.cnv.bias"] = ours[f"{path}.hanc.own.bias"]
    widths = [int(network.config["base_filters"]) * 2**level for level in range(_LEVELS)]
    for index in range(int(network.config["mlfc_iterations"])):
        for level in range(_LEVELS):
            convolutions = f"mlfc{index + 1}.cnv_blks{level + 1}.0", f"mlfc{index + 1}.cnv_mrg{level + 1}.0"
            if network.config["mlfc"] == "lite":
                official.update(_unused_lite(index, level, widths, network.spatial_dims))
                continue
            path = f"mlfc.{index}.levels.{level}"
            coarser = [ours[f"{path}.compile_coarser.{i}.weight"] for i in range(_LEVELS - 1 - level)]
            official[f"{convolutions[0]}.conv1.weight"] = torch.cat([ours[f"{path}.compile_finer.weight"], *coarser], 1)
            official[f"{convolutions[0]}.conv1.bias"] = ours[f"{path}.compile_finer.bias"]
            own = ours[f"{path}.merge.weight"]
            official[f"{convolutions[1]}.conv1.weight"] = torch.stack(own.chunk(2, 1), 2).flatten(1, 2)
            official[f"{convolutions[1]}.conv1.bias"] = ours[f"{path}.merge.bias"]
    return {key: value.clone() for key, value in official.items()}


def _read_arguments(official: Mapping[str, Tensor], variant: MLFCVariant | None) -> dict[str, Any]:
    """The constructor's arguments, from the shapes of the first block's projection and of the head."""
    for key in ("cnv11.conv3.weight", "out.weight"):
        if key not in official:
            raise NetworkError(
                "OFFICIAL_KEYS",
                f"not a state_dict of the authors' ACC-UNet: key {key!r} is missing.",
                hint="Pass the state_dict itself, not a checkpoint that contains it.",
            )
        shape = tuple(official[key].shape)
        if len(shape) not in (4, 5) or 0 in shape:
            raise NetworkError("OFFICIAL_KEYS", f"{key} has shape {shape}, which is no convolution kernel in 2D or 3D.")
    stem, head = official["cnv11.conv3.weight"], official["out.weight"]
    return {
        "spatial_dims": stem.dim() - 2,
        "in_channels": int(stem.shape[1]),
        "out_channels": int(head.shape[0]),
        "base_filters": int(stem.shape[0]),
        "mlfc_iterations": len({key.split(".")[0] for key in official if key.startswith("mlfc")}),
        "mlfc": variant or _detect_variant(official),
    }


def _check_keys_and_shapes(official: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse missing, surplus and misshapen tensors, naming the first ones."""
    missing = sorted(set(expected) - set(official))
    if missing:
        raise NetworkError("OFFICIAL_KEYS", f"the official state_dict lacks {', '.join(missing[:5])}.")
    surplus = sorted(set(official) - set(expected))
    if surplus:
        raise NetworkError("OFFICIAL_KEYS", f"the official state_dict has unknown keys: {', '.join(surplus[:5])}.")
    for key, value in expected.items():
        if official[key].shape != value.shape:
            found = tuple(official[key].shape)
            raise NetworkError("OFFICIAL_KEYS", f"{key} has shape {found}, expected {tuple(value.shape)}.")


def _has_official_form(network: ACCUNet) -> bool:
    """Batch norm and LeakyReLU(0.01), however they were spelt."""
    (norm, norm_options), (act, act_options) = (
        (spec, {}) if isinstance(spec, str) else spec for spec in (network.config["norm"], network.config["act"])
    )
    slope = act_options.get("negative_slope", 0.01)
    return norm.lower() == "batch" and not norm_options and act.lower() == "leakyrelu" and slope == 0.01


def _translate(official: Mapping[str, Tensor], network: ACCUNet) -> _State:
    """Ours from theirs, whose keys and shapes were checked."""
    ours: _State = {mine: official[theirs] for theirs, mine in _plain_keys(network)}
    for block, path in _hanc_blocks():
        expanded = int(official[f"{block}.conv2.weight"].shape[0])
        scales = _split_scales(official[f"{block}.hnc.cnv.weight"], expanded)
        ours[f"{path}.hanc.own.weight"] = scales[0]
        ours[f"{path}.hanc.own.bias"] = official[f"{block}.hnc.cnv.bias"]
        for index, weight in enumerate(scales[1:]):
            ours[f"{path}.hanc.pooled.{index}.weight"] = weight
    if network.config["mlfc"] == "lite":
        return ours
    widths = [int(network.config["base_filters"]) * 2**level for level in range(_LEVELS)]
    for index in range(int(network.config["mlfc_iterations"])):
        for level in range(_LEVELS):
            path = f"mlfc.{index}.levels.{level}"
            compile_unit, merge_unit = f"mlfc{index + 1}.cnv_blks{level + 1}.0", f"mlfc{index + 1}.cnv_mrg{level + 1}.0"
            compiled = official[f"{compile_unit}.conv1.weight"].split(widths, 1)  # type: ignore[no-untyped-call]
            ours[f"{path}.compile_finer.weight"] = torch.cat(compiled[: level + 1], 1)
            ours[f"{path}.compile_finer.bias"] = official[f"{compile_unit}.conv1.bias"]
            for coarser, weight in enumerate(compiled[level + 1 :]):
                ours[f"{path}.compile_coarser.{coarser}.weight"] = weight
            merge = official[f"{merge_unit}.conv1.weight"]
            ours[f"{path}.merge.weight"] = torch.cat([merge[:, 0::2], merge[:, 1::2]], 1)
            ours[f"{path}.merge.bias"] = official[f"{merge_unit}.conv1.bias"]
    return ours


def _detect_variant(official: Mapping[str, Tensor]) -> MLFCVariant:
    if any(re.fullmatch(r"mlfc\d+\.W", key) for key in official):
        return "weighted"
    counters = {key: int(value) for key, value in official.items() if key.endswith("num_batches_tracked")}
    idle = [count for key, count in counters.items() if re.match(r"mlfc\d+\.(cnv_|bns)", key)]
    trained = max(counters.values(), default=0) > 0
    return "lite" if trained and idle and max(idle) == 0 else "published"


def _split_scales(weight: Tensor, expanded: int) -> list[Tensor]:
    """(O, C·(2k−1), *ones), channel-interleaved → [own (O, C), then per scale (average, maximum) (O, 2C)]."""
    per_map = weight.reshape(weight.shape[0], expanded, -1, *weight.shape[2:]).unbind(2)
    k = (len(per_map) + 1) // 2
    return [per_map[0], *(torch.cat([per_map[s], per_map[k - 1 + s]], 1) for s in range(1, k))]


def _interleave_scales(ours: Mapping[str, Tensor], path: str, k: int) -> Tensor:
    """The inverse of :func:`_split_scales`."""
    pooled = [ours[f"{path}.pooled.{index}.weight"].chunk(2, 1) for index in range(k - 1)]
    maps = [ours[f"{path}.own.weight"], *(average for average, _ in pooled), *(maximum for _, maximum in pooled)]
    return torch.stack(maps, 2).flatten(1, 2)


def _plain_keys(network: ACCUNet) -> Iterator[tuple[str, str]]:
    """(their key, our key) of every tensor that is the same in both."""
    for block, path in _hanc_blocks():
        for theirs, mine in (("conv1", "expand"), ("conv2", "depthwise"), ("conv3", "project")):
            yield from _parts(f"{block}.{theirs}", f"{path}.{mine}", _CONV_PARTS)
        for theirs, mine in (
            ("norm1", "expand_norm"),
            ("norm2", "depthwise_norm"),
            ("hnc.bn", "hanc.norm"),
            ("norm", "residual_norm"),
            ("norm3", "project_norm"),
        ):
            yield from _parts(f"{block}.{theirs}", f"{path}.{mine}", _NORM_PARTS)
        yield from _squeeze(f"{block}.sqe", f"{path}.squeeze")
    for level in range(_LEVELS):
        for index in range(_LEVELS - level):
            path = f"skips.{level}.blocks.{index}"
            yield from _parts(f"rspth{level + 1}.convs.{index}", f"{path}.0", _CONV_PARTS)
            yield from _parts(f"rspth{level + 1}.bns.{index}", f"{path}.1", _NORM_PARTS)
            yield from _squeeze(f"rspth{level + 1}.sqes.{index}", f"{path}.3")
        yield from _parts(f"rspth{level + 1}.bn", f"skips.{level}.norm", _NORM_PARTS)
        yield from _parts(f"rspth{level + 1}.sqe", f"skips.{level}.final_norm", _NORM_PARTS)
    for index in range(int(network.config["mlfc_iterations"])):
        yield from _plain_mlfc_keys(f"mlfc{index + 1}", f"mlfc.{index}", str(network.config["mlfc"]))
    for step in range(_LEVELS):
        yield from _parts(f"up{step + 6}", f"upsample.{step}", _CONV_PARTS)
    yield from _parts("out", "head", _CONV_PARTS)


def _plain_mlfc_keys(theirs: str, mine: str, variant: str) -> Iterator[tuple[str, str]]:
    for level in range(_LEVELS):
        if variant == "lite":
            yield from _squeeze(f"{theirs}.sqe{level + 1}", f"{mine}.lite.{level}")
            continue
        path = f"{mine}.levels.{level}"
        yield from _squeeze(f"{theirs}.sqe{level + 1}", f"{path}.squeeze")
        for names, step in ((("cnv_blks", "bns"), "compile"), (("cnv_mrg", "bns_mrg"), "merge")):
            yield from _parts(f"{theirs}.{names[0]}{level + 1}.0.batchnorm", f"{path}.{step}_unit.norm", _NORM_PARTS)
            yield from _squeeze(f"{theirs}.{names[0]}{level + 1}.0.sqe", f"{path}.{step}_unit.squeeze")
            yield from _parts(f"{theirs}.{names[1]}{level + 1}.0", f"{path}.{step}_norm", _NORM_PARTS)
    if variant == "weighted":
        yield f"{theirs}.W", f"{mine}.weight"


def _hanc_blocks() -> Iterator[tuple[str, str]]:
    """(their block, our block): levels 1–5 go down, 6–9 up, two blocks each."""
    for level in range(9):
        stage = f"encoder.{level}" if level < 5 else f"decoder.{level - 5}"
        for block in range(2):
            yield f"cnv{level + 1}{block + 1}", f"{stage}.{block}"


def _squeeze(theirs: str, mine: str) -> Iterator[tuple[str, str]]:
    yield from _parts(f"{theirs}.fc1", f"{mine}.fc1", _CONV_PARTS)
    yield from _parts(f"{theirs}.fc2", f"{mine}.fc2", _CONV_PARTS)
    yield from _parts(f"{theirs}.bn", f"{mine}.norm", _NORM_PARTS)


def _parts(theirs: str, mine: str, parts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for part in parts:
        yield f"{theirs}.{part}", f"{mine}.{part}"


def _unused_lite(index: int, level: int, widths: list[int], spatial_dims: int) -> _State:
    """What the authors' Lite holds for one MLFC level and never uses: zero convolutions, identity norms."""
    own = widths[level]
    hidden = max(1, own // 8)
    unused: _State = {}

    def norm(key: str) -> None:
        values = torch.ones(own), torch.zeros(own), torch.zeros(own), torch.ones(own), torch.tensor(0)
        unused.update({f"{key}.{part}": value for part, value in zip(_NORM_PARTS, values, strict=True)})

    for name, inputs in (("cnv_blks", sum(widths)), ("cnv_mrg", 2 * own)):
        unit = f"mlfc{index + 1}.{name}{level + 1}.0"
        unused[f"{unit}.conv1.weight"] = torch.zeros(own, inputs, *[1] * spatial_dims)
        unused[f"{unit}.conv1.bias"] = torch.zeros(own)
        for layer, rows, columns in (("fc1", hidden, own), ("fc2", own, hidden)):
            unused[f"{unit}.sqe.{layer}.weight"] = torch.zeros(rows, columns)
            unused[f"{unit}.sqe.{layer}.bias"] = torch.zeros(rows)
        norm(f"{unit}.batchnorm")
        norm(f"{unit}.sqe.bn")
    norm(f"mlfc{index + 1}.bns{level + 1}.0")
    norm(f"mlfc{index + 1}.bns_mrg{level + 1}.0")
    return unused
