"""Where bundles and images are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from accunet_monai.errors import BundleError


def bundles_folder() -> Path:
    """The folder of the shipped bundles: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_bundles", package.parent / "bundles"):
        if folder.is_dir():
            return folder
    raise BundleError("BUNDLE_NONE", "this installation carries no bundles.", path=package)


def list_bundles() -> list[Path]:
    """Folders of the shipped bundles, by name."""
    return sorted(path.parent.parent for path in bundles_folder().glob("*/configs/metadata.json"))


def find_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """Folder of a bundle, given by its path or by the name of a shipped one.

    Raises:
        BundleError: ``BUNDLE_UNKNOWN``, naming what there is, or ``BUNDLE_ARCHIVE`` for a zip file.
    """
    given = Path(name_or_path)
    shipped = {path.name: path for path in list_bundles()}
    if (given / "configs" / "metadata.json").is_file():
        return given.resolve()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if given.suffix.lower() == ".zip" and given.is_file():
        hint = f"Unpack it: accunet bundle unpack {given} FOLDER"
        raise BundleError(
            "BUNDLE_ARCHIVE", "a bundle is opened from its folder, not from an archive.", path=given, hint=hint
        )
    raise BundleError(
        "BUNDLE_UNKNOWN",
        "neither a bundle's folder (with configs/metadata.json) nor the name of a shipped bundle.",
        path=given,
        hint=f"Shipped: {', '.join(shipped) or 'none'}.",
    )


def find_images(source: str | os.PathLike[str], endings: Sequence[str] = (".nii", ".nii.gz")) -> list[Path]:
    """The image files of a file or folder, sorted, without hidden ones; of a Decathlon folder those of ``imagesTr``.

    Raises:
        BundleError: ``INPUT_MISSING`` or ``INPUT_EMPTY``.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BundleError("INPUT_MISSING", "no such file or folder.", path=path)
    folder = path / "imagesTr" if (path / "imagesTr").is_dir() else path
    found = sorted(
        item
        for item in folder.iterdir()
        if item.is_file() and item.name.lower().endswith(tuple(endings)) and not item.name.startswith(".")
    )
    if not found:
        raise BundleError("INPUT_EMPTY", f"no file that ends in {' or '.join(endings)}.", path=folder)
    return found


def image_cases(source: str | os.PathLike[str], limit: int | None = None, channels: int = 1) -> list[dict[str, str]]:
    """``{"image": path}`` for each NIfTI file of :func:`find_images`, for a dataset in a config.

    Args:
        source: a file or folder.
        limit: only the first so many.
        channels: of an image; of several it is named by the first of nnU-Net's files.
    """
    from accunet_monai.volumes import first_channels

    found = find_images(source)
    return [{"image": str(path)} for path in (found if channels == 1 else first_channels(found))[:limit]]
