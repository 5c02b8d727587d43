"""What a bundle is, as text; its weights as PyTorch's own file; trained weights put into it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accunet_monai.bundle import WEIGHTS, find_bundle, load_bundle, write_manifest
from accunet_monai.bundle.manifest import MANIFEST, check_weights
from accunet_monai.errors import SeriesError
from accunet_monai.volumes import FoundSeries, find_series


def print_bundle(name_or_path: str | os.PathLike[str], console: Console | None = None) -> None:
    """Print purpose, labels, network by stage with parameters, and the weights' header.

    Args:
        name_or_path: a shipped bundle's name or a bundle's folder.
        console: where to print.
    """
    from accunet_monai.networks.checkpoint import read_weights

    console = console or Console()
    predictor = load_bundle(name_or_path)
    metadata = predictor.metadata
    facts = Table(show_header=False, box=None)
    for key in ("name", "version", "task", "description", "intended_use", "data_source", "copyright"):
        if key in metadata:
            facts.add_row(key, escape(str(metadata[key])))
    facts.add_row("labels", escape(", ".join(f"{value} {name}" for value, name in predictor.labels.items())))
    facts.add_row("folder", escape(str(predictor.bundle)))
    console.print(facts)
    console.print(network_table(predictor.network))
    _, header = read_weights(predictor.bundle / WEIGHTS)
    for key, value in sorted(header.items()):
        console.print(f"weights: {key} = {value}", highlight=False, markup=False)


def print_series(path: str | os.PathLike[str], console: Console | None = None) -> FoundSeries:
    """Print the DICOM series of a file, folder tree or DICOMDIR, and why one of them would be refused.

    It goes by the headers; pixels are not decoded.

    Args:
        path: what to look through.
        console: where to print.

    Raises:
        SeriesError: ``SERIES_NONE`` when there is none, and what :func:`~accunet_monai.volumes.find_series` raises.
    """
    console = console or Console()
    found = find_series(path)
    table = Table()
    for heading in ("", "no.", "description", "columns × rows × slices", "part", "SeriesInstanceUID", "as one volume"):
        table.add_column(heading, overflow="fold")  # nothing is cut off: UIDs are to be copied
    for series in found:
        first = series.frames[0]
        part = ", ".join(f"{name} {value}" for name, value in series.split.items())
        refusal = f"refused: [{series.problem.code}] {series.problem.message}" if series.problem else "readable"
        size = f"{first.columns} × {first.rows} × {len(series.frames)}"
        number = "" if series.number is None else str(series.number)
        row = (series.modality, number, series.description, size, part, series.series_uid or "none", refusal)
        table.add_row(*(escape(_printable(cell)) for cell in row))
    if found:
        console.print(table)
    for (code, reason), count in Counter((file.code, file.reason) for file in found.skipped).most_common():
        line = f"{count} file{'s' * (count > 1)} passed over: [{code}] {reason}"
        console.print(_printable(line), highlight=False, markup=False, soft_wrap=True)
    if not found:
        raise SeriesError("SERIES_NONE", "there is no CT, MR or PET series.", path=path)
    return found


def network_table(network: Any) -> Table:
    """The network's children: what they are made of and their parameters."""
    table = Table("part", "made of", "parameters")
    total = 0
    for name, child in network.named_children():
        count = sum(parameter.numel() for parameter in child.parameters())
        blocks = Counter(
            type(module).__name__
            for module in child.modules()
            if type(module).__name__ in ("HANCBlock", "ResPath", "MLFCLayer", "ConvTranspose2d", "ConvTranspose3d")
        )
        made_of = ", ".join(f"{number} {kind}" for kind, number in blocks.items()) or type(child).__name__
        table.add_row(name, made_of, f"{count:,}")
        total += count
    table.add_section()
    table.add_row("all", type(network).__name__, f"{total:,}", style="bold")
    return table


def export_checkpoint(
    name_or_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
) -> Path:
    """Write safetensors weights as a PyTorch ``state_dict`` file, which ``monai.bundle ckpt_export`` takes.

    Args:
        name_or_path: a shipped bundle's name or a bundle's folder.
        output: file to write, by convention ``model.pt``.
        weights: instead of the bundle's.
    """
    import torch

    from accunet_monai.networks.checkpoint import read_weights
    from accunet_monai.volumes.atomic import atomic_output

    tensors, _ = read_weights(weights or check_weights(find_bundle(name_or_path)))
    with atomic_output(output) as file:
        torch.save(tensors, file)
    return Path(output)


def install_weights(name_or_path: str | os.PathLike[str], weights: str | os.PathLike[str], half: bool = False) -> Path:
    """Make trained weights a bundle's own, once they are known to fit its network; returns the written file.

    A manifest that the bundle has is written anew.

    Args:
        name_or_path: a shipped bundle's name or a bundle's folder.
        weights: safetensors file as training writes it; its header is kept.
        half: store matrices and kernels as float16, half the size; they are read as float32. Vectors (norms and biases)
            keep their precision: running variances do not fit the range of float16.

    Raises:
        NetworkError, BundleError: the weights do not fit or the bundle cannot be opened; nothing is written then.
    """
    import torch

    from accunet_monai.networks.checkpoint import read_weights, save_weights

    bundle = load_bundle(name_or_path, weights=weights).bundle
    tensors, header = read_weights(weights)
    if half:
        tensors = {key: value.to(torch.float16) if value.dim() > 1 else value for key, value in tensors.items()}
    written = save_weights(tensors, bundle / WEIGHTS, header)
    if (bundle / MANIFEST).is_file():
        write_manifest(bundle, mlflow_run=header.get("mlflow_run"))
    return written


def _printable(text: str) -> str:
    """Without control characters: what a file says of itself must not steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
