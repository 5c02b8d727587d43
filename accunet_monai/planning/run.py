"""``accunet plan``: examine a dataset, choose, and write a bundle that trains at once."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accunet_monai.datasets import list_dataset
from accunet_monai.errors import DatasetError
from accunet_monai.planning.choices import Plan, make_plan, shown, split_of
from accunet_monai.planning.configs import bundle_name, make_configs
from accunet_monai.planning.documents import make_licence, make_metadata, make_page, make_plan_file, make_segments
from accunet_monai.planning.examination import Examination, examine

MADE = ("configs", "docs", "LICENSE")
"""What a plan writes; ``overwrite`` replaces these and leaves the rest of the folder as it is."""


def plan_dataset(
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    memory_gib: float | None = None,
    own: Mapping[str, Any] | None = None,
    plan_file: str | os.PathLike[str] | None = None,
    split_file: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Make a bundle for a labelled dataset.

    Args:
        dataset: a folder or CSV file, see :mod:`accunet_monai.datasets.layouts`.
        output: the bundle's folder; appears complete or not at all.
        memory_gib: that a training may take; by default the GPU's, or half of what is free.
        own: choices of the user, by their key in plan.yaml.
        plan_file: an edited plan.yaml.
        split_file: with subjects, and folds if these are to be kept.
        overwrite: replace an earlier plan's files in ``output``.
        console: where the plan is printed.

    Returns:
        The bundle's folder.

    Raises:
        DatasetError: what :func:`~accunet_monai.datasets.list_dataset`, :func:`examine` and :func:`make_plan` raise,
            ``PLAN_OUTPUT`` (the folder is in use) or ``PLAN_INVALID`` (the plan file is none).
    """
    console = console or Console()
    target = Path(output)
    _check_free(target, overwrite)
    chosen = {**_read_plan(plan_file), **(own or {})}
    listing = list_dataset(dataset)
    found = examine(listing, split_file, console)
    memory, gpu = (memory_gib, _has_gpu()) if memory_gib else _memory()
    plan = make_plan(found, memory, gpu=gpu, own=chosen)
    split = split_of(found, plan)
    _print(found, plan, console)
    _write(target, _files(bundle_name(target.absolute()), found, plan, split))
    console.print(
        f"written: {target}\nnext: python -m monai.bundle run --config_file {target / 'configs' / 'train.yaml'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return target


def _files(name: str, found: Examination, plan: Plan, split: Mapping[str, Any]) -> dict[str, str]:
    """Relative path → text of everything in the bundle."""
    configs = make_configs(name, found, plan) | {
        "metadata.json": make_metadata(name, found, plan),
        "segments.yaml": make_segments(name, found),
        "split.json": json.dumps(split, indent=1) + "\n",
    }
    return {f"configs/{file}": text for file, text in configs.items()} | {
        "docs/plan.yaml": make_plan_file(found, plan, found.listing.name or name),
        "docs/README.md": make_page(name, found, plan.choices),
        "docs/data_license.txt": make_licence(found),
        "LICENSE": make_licence(found),
    }


def _write(target: Path, files: Mapping[str, str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        made = Path(temporary) / "made"
        for name, text in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(text, encoding="utf-8")
        (made / "models").mkdir()
        if not target.exists():
            made.rename(target)
            return
        for name in MADE:
            if (target / name).is_dir():
                shutil.rmtree(target / name)
            (made / name).replace(target / name)


def _check_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise DatasetError("PLAN_OUTPUT", "this is a file, a folder is needed.", path=target)
    if not target.exists():
        return
    if not any(target.iterdir()):
        target.rmdir()
    elif not overwrite or not (target / "docs" / "plan.yaml").is_file():
        hint = "Give another folder, or --overwrite where it holds an earlier plan."
        raise DatasetError("PLAN_OUTPUT", "the folder is not empty.", path=target, hint=hint)


def _read_plan(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        stated = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return dict(stated)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        message = f"not a plan ({' '.join(str(error).split())})."
        raise DatasetError("PLAN_INVALID", message, path=path) from error


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _memory() -> tuple[float, bool]:
    """GiB that a training may take here, and whether they are a GPU's."""
    import torch

    if torch.cuda.is_available():
        return 0.85 * torch.cuda.get_device_properties(0).total_memory / 2**30, True
    return 0.5 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, False


def _print(found: Examination, plan: Plan, console: Console) -> None:
    subjects = len({fact.subject for fact in found.facts})
    listing = found.listing
    labels = f"{len(listing.labels)} labels"
    labels += f" of {len(listing.regions)} regions" if listing.regions else ""
    labels += f", channels: {', '.join(listing.channels)}" if listing.image_channels > 1 else ""
    console.print(
        f"{escape(str(found.listing.path))}: {found.listing.layout}, {len(found.facts)} cases of {subjects} subjects, "
        f"{escape(labels)}",
        highlight=False,
        soft_wrap=True,
    )
    for warning in found.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(str(warning))}", highlight=False, soft_wrap=True)
    table = Table("choice", "value", "reason", title="Plan")
    for choice in plan.choices:
        table.add_row(choice.key, escape(shown(choice.value)), escape(choice.reason))
    console.print(table)
