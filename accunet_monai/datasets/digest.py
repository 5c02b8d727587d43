"""What a dataset is, in 64 hexadecimal digits: of its content, wherever it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NAMES = ("case", "subject")
"""Keys of a case that name it; all others hold data."""


def content_digest(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes, or of the names and bytes of all files in a folder, whatever their order on disk."""
    source = Path(path)
    if not source.is_dir():
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(item for item in source.rglob("*") if item.is_file()):
        digest.update(f"{file_path.relative_to(source).as_posix()}\0{content_digest(file_path)}\n".encode())
    return digest.hexdigest()


def dataset_digest(cases: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over the names of cases and the content of their files, in the order of the names.

    Two copies of a dataset have one digest; a changed voxel, another name or a case more gives another.

    Args:
        cases: with ``case`` and paths under other keys (``image``, ``label``).
    """
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda item: str(item["case"])):
        files = [content_digest(case[key]) for key in sorted(case, key=_role) if key not in NAMES]
        digest.update("\0".join([str(case["case"]), *files, "\n"]).encode())
    return digest.hexdigest()


def _role(key: str) -> tuple[bool, str]:
    """The image first: a label is the same label whatever key it is under."""
    return key != "image", key
