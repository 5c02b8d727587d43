"""Runs what a Markdown page shows: Python blocks in one namespace, commands through the programs they name.

A page runs in a folder of its own that has ``image.nii.gz``, ``label.nii.gz``, ``images/``, and the checkout's
``bundles`` and ``configs``; ``PATH`` in a command is a made dataset. A comment right before a block says what differs:

    <!-- test: skip, REASON -->     the block is not run
    <!-- test: by FILE -->          another test runs the block
    <!-- test: with ARGUMENTS -->   added to each command of the block, to keep it short
    <!-- test: printed -->          the block is what the Python block before it printed

Commands run in this process, through the same argument parsers, because importing torch and MONAI anew for each would
take longer than what they do; ``tests/test_bundles.py`` starts them as programs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(?:^<!-- test: (?P<note>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
_SHAPE = (20, 40, 28)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the note before it."""

    language: str
    text: str
    note: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["text"], found["note"] or "", text.count("\n", 0, found.start("language")) + 1)
        for found in _BLOCK.finditer(text)
    ]


def run_page(page: Path, folder: Path) -> dict[str, Any]:
    """Run all blocks of a page in ``folder``, in order; returns the namespace of its Python blocks."""
    namespace: dict[str, Any] = {"__name__": "page"}
    dataset = furnish(folder)
    printed = ""
    with contextlib.chdir(folder):
        for block in blocks(page):
            where = f"{page.name}, line {block.line}"
            if block.note.startswith(("skip, ", "by ")):
                continue
            if block.note == "printed":
                assert block.text == printed, f"{where} says\n{block.text}\nbut it printed\n{printed}"
            elif block.language == "python":
                printed = run_python(block, page, namespace)
            elif block.language == "bash":
                for command in commands(block):
                    run_command(command, dataset, where)
    return namespace


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    padding = "\n" * block.line  # so that a traceback names the page's line
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(padding + block.text, str(page), "exec"), namespace)
    return out.getvalue()


def commands(block: Block) -> list[list[str]]:
    """The block's command lines as words, with the arguments of its note."""
    added = shlex.split(block.note.removeprefix("with ")) if block.note.startswith("with ") else []
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words + added for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words: list[str], dataset: Path, where: str) -> None:
    words = [str(dataset) if word == "PATH" else word for word in words]
    variables = {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    with environment(variables):
        if words[:3] == ["python", "-m", "monai.bundle"]:
            run_monai(words[3:])
        elif words[0] == "accunet":
            run_accunet(words[1:], where)
        elif words[0] == "make":  # that make can do it and what it would do; make itself runs in CI, once
            plan = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
            assert plan.returncode == 0, f"{where}: {plan.stderr}"
            expected = {"demo": ".venv/bin/accunet demo", "test": ".venv/bin/python -m pytest"}[words[1]]
            assert expected in plan.stdout, f"{where}: {plan.stdout}"
        elif words[0] == "cp":
            subprocess.run(words, check=True)
        else:
            raise AssertionError(f"{where}: no test knows how to run {words[0]!r}; give the block a note")


def run_monai(arguments: list[str]) -> None:
    """``python -m monai.bundle ARGUMENTS``."""
    from monai.utils import set_determinism

    before = sys.argv
    sys.argv = ["monai.bundle", *arguments]
    try:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)
    finally:
        sys.argv = before
        set_determinism(None)


def run_accunet(arguments: list[str], where: str) -> None:
    """``accunet ARGUMENTS``; its exit status must be 0."""
    from monai.utils import set_determinism

    from accunet_monai.cli import app

    try:
        status = app(arguments, standalone_mode=False)
    finally:
        set_determinism(None)
    assert not status, f"{where}: accunet {shlex.join(arguments)} ended with status {status}"


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def furnish(folder: Path) -> Path:
    """Put into ``folder`` what the pages take for granted; returns the dataset that stands for ``PATH``.

    The dataset lists all cases of the hippocampus bundle's split, but has files only for the first of each part: the
    pages' commands run with one case of each.
    """
    for name in ("bundles", "configs"):
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    write_crop(folder / "image.nii.gz", folder / "label.nii.gz")
    (folder / "images").mkdir()
    write_crop(folder / "images" / "crop.nii.gz", None)
    split = json.loads((ROOT / "bundles/hippocampus_mri/configs/split.json").read_text(encoding="utf-8"))["parts"]
    dataset = folder / "dataset"
    for name in ("imagesTr", "labelsTr"):
        (dataset / name).mkdir(parents=True)
    for cases in split.values():
        write_crop(dataset / "imagesTr" / f"{cases[0]}.nii.gz", dataset / "labelsTr" / f"{cases[0]}.nii.gz")
    listed = [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
        for cases in split.values()
        for case in cases
    ]
    (dataset / "dataset.json").write_text(json.dumps({"training": listed}), encoding="utf-8")
    return dataset


def write_crop(image: Path, label: Path | None) -> None:
    """A bright sausage of two labels, 1 anterior and 2 posterior, in noise."""
    x, y, z = np.indices(_SHAPE)
    inside = ((x - 10) / 5) ** 2 + ((y - 20) / 15) ** 2 + ((z - 14) / 6) ** 2 < 1
    labels = np.where(inside, np.where(y >= 20, 1, 2), 0).astype(np.uint8)
    grey = (100 + 60 * inside + np.random.default_rng(0).normal(0, 10, _SHAPE)).astype(np.float32)
    nib.save(nib.Nifti1Image(grey, np.eye(4)), image)
    if label is not None:
        nib.save(nib.Nifti1Image(labels, np.eye(4)), label)
