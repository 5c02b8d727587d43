"""What a dataset is, in 64 hexadecimal digits: of its content, wherever it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accunet_monai.volumes.metaimage import ITK_ENDINGS, itk_files

NAMES = ("case", "subject")
"""Keys of a case that name it; all others hold data."""


def content_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files whose bytes a path stands for: of a folder all; of an image's header its own and that of its voxels.

    Raises:
        VolumeError: as :func:`~accunet_monai.volumes.metaimage.itk_files`.
    """
    source = Path(path)
    if source.is_dir():
        return sorted(item for item in source.rglob("*") if item.is_file())
    return list(itk_files(source)) if source.name.lower().endswith(ITK_ENDINGS) else [source]


def content_digest(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes, or of the names and bytes of all files in a folder, whatever their order on disk.

    An image whose voxels lie in a file of their own (``.mhd``, ``.nhdr``) is digested with them.

    Raises:
        VolumeError: as :func:`content_files`.
    """
    source, files = Path(path), content_files(path)
    if files == [source]:
        return _sha256(source)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{os.path.relpath(file, source)}\0{_sha256(file)}\n".encode())
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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _role(key: str) -> tuple[bool, str]:
    """The image first: a label is the same label whatever key it is under."""
    return key != "image", key
