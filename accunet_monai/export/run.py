"""``accunet export``: from a bundle's folder to a verified file."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from accunet_monai.bundle import WEIGHTS, Predictor, load_bundle, read_literal_sections
from accunet_monai.errors import BundleError
from accunet_monai.export.cost import Cost, Timed, calibration_batches, evaluated
from accunet_monai.export.programs import (
    PT2_SMALLEST,
    Program,
    check_request,
    compared,
    open_program,
    program_bytes,
)
from accunet_monai.networks import ACCUNet
from accunet_monai.networks.deploy import optimize_for_inference
from accunet_monai.volumes import atomic_output


@dataclass(frozen=True)
class Export:
    """A written and verified program.

    Attributes:
        path: the file.
        description: what it holds under ``accunet.json``.
        difference: from the bundle's network on made images, as a share of the spread: the largest one of float32,
            the mean one of lower precisions.
        cost: measured on a dataset, if one was given.
    """

    path: Path
    description: dict[str, Any]
    difference: float
    cost: Cost | None


def export_bundle(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str = "torchscript",  # noqa: A002 (the command's own word)
    *,
    weights: str | os.PathLike[str] | None = None,
    precision: str = "float32",
    dataset_dir: str | os.PathLike[str] | None = None,
    probabilities: bool = False,
    console: Console | None = None,
) -> Export:
    """Write a bundle's network as a program (N, C, *spatial) float32 → (N, classes, *spatial) float32.

    Batch and spatial sizes are free (from ``smallest_size`` of the description on).

    Args:
        bundle: a shipped bundle's name or a bundle's folder.
        output: file to write, by convention ``.ts``, ``.pt2`` or ``.onnx``.
        format: ``"torchscript"``, ``"pt2"`` or ``"onnx"``.
        weights: instead of the bundle's.
        precision: one that ``PRECISIONS`` has for the format. ``"int8"`` is calibrated on training cases.
        dataset_dir: a labelled dataset; given, the Dice on the bundle's validation cases is measured.
        probabilities: the program ends in a sigmoid (one class) or softmax instead of in logits.
        console: where what was found is printed.

    Raises:
        BundleError: ``EXPORT_FORMAT``, ``EXPORT_PRECISION``, ``EXPORT_CALIBRATION`` (int8 without a dataset),
            ``EXPORT_PACKAGES``, ``EXPORT_FAILED`` (this network has no such form), ``EXPORT_NO_DICE``; and what opening
            the bundle raises.
        NetworkError: ``EXPORT_DIFFERS`` when the file does not compute what the network does, with the difference;
            nothing is written then.
        DatasetError: for a dataset that is missing or incomplete.
    """
    check_request(format, precision, dataset_dir)
    predictor = load_bundle(bundle, weights)
    description = _description(predictor, weights or predictor.bundle / WEIGHTS, format, precision, probabilities)
    network = predictor.network
    reference = None if dataset_dir is None else evaluated(predictor.bundle, Timed(network), dataset_dir)
    batches = calibration_batches(predictor.bundle, network, dataset_dir) if precision == "int8" else []
    program = Program(_prepared(network, precision), probabilities).eval()
    content = program_bytes(program, description, batches)
    with atomic_output(output) as file:
        file.write(content)
        file.flush()
        run, _ = open_program(file.name, format)
        difference = compared(run, Program(network, probabilities), description, Path(output))
    cost = None
    if reference is not None and dataset_dir is not None:
        timed = Timed(run, from_probabilities=probabilities)
        dice = evaluated(predictor.bundle, timed, dataset_dir)
        sizes = Path(weights or predictor.bundle / WEIGHTS).stat().st_size, len(content)
        pairs = {name: (reference[0][name], dice[0][name]) for name in reference[0]}
        cost = Cost(pairs, (reference[1], dice[1]), sizes)
    exported = Export(Path(output), description, difference, cost)
    _print_export(exported, console or Console())
    return exported


def _description(
    predictor: Predictor,
    weights: str | os.PathLike[str],
    format: str,  # noqa: A002
    precision: str,
    probabilities: bool,
) -> dict[str, Any]:
    """What the file says of itself: where it comes from, what it takes and gives."""
    network, metadata = predictor.network, predictor.metadata
    sections = read_literal_sections(predictor.bundle)
    any_size = isinstance(network, ACCUNet) and format != "pt2"
    return {
        "bundle": predictor.bundle.name,
        "version": metadata.get("version"),
        "weights_sha256": hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        "format": format,
        "precision": precision,
        "output": "probabilities" if probabilities else "logits",
        "labels": {str(value): name for value, name in predictor.labels.items()},
        "spatial_dims": 2 if predictor.is_2d_network(network) else 3,
        "smallest_size": 1 if any_size else PT2_SMALLEST,
        "input": metadata["network_data_format"]["inputs"]["image"],
        **{name: section for name, section in sections.items() if name != "network_def"},
    }


def _prepared(network: nn.Module, precision: str) -> nn.Module:
    """The folded network, or the network itself where its norms cannot be folded."""
    try:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        return optimize_for_inference(network, dtype=dtype)
    except ValueError as error:
        if precision == "bfloat16":
            raise BundleError("EXPORT_PRECISION", f"not this network: {error}.") from error
        return network


def _print_export(exported: Export, console: Console) -> None:
    made, precision = exported.description, exported.description["precision"]
    console.print(
        f"written: {exported.path} ({made['format']}, {precision}, {exported.path.stat().st_size / 1e6:.2f} MB)",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    how = f"{'at most' if precision == 'float32' else 'on average'} {exported.difference:.1e} of the spread"
    console.print(
        f"opened again: on made images {how} from the network's {made['output']}",
        highlight=False,
        soft_wrap=True,
    )
    if exported.cost is None:
        if precision != "float32":
            console.print(f"what {precision} costs in Dice was not measured: give --dataset_dir", style="bold")
        return
    table = Table("validation cases", "network, float32", f"{made['format']}, {precision}", "difference")
    for name, (before, after) in exported.cost.dice.items():
        table.add_row(f"Dice, {escape(name)}", f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    table.add_section()
    for name, unit, (before, after) in (
        ("time in the network", "s", exported.cost.seconds),
        ("file", "MB", (exported.cost.size[0] / 1e6, exported.cost.size[1] / 1e6)),
    ):
        table.add_row(name, f"{before:.2f} {unit}", f"{after:.2f} {unit}", f"× {after / before:.2f}")
    console.print(table)
