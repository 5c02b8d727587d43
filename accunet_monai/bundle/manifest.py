"""What a bundle consists of: ``manifest.json`` has size and sha256 of its files, and where the weights are from.

A manifest tells whether files were damaged or exchanged since it was written. Whoever can exchange the manifest as well
is only found out by its own digest (:func:`manifest_digest`), kept somewhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from accunet_monai.bundle.plain import check_inside, read_plain
from accunet_monai.errors import BundleError
from accunet_monai.volumes.atomic import atomic_output

MANIFEST = "manifest.json"
WEIGHTS = Path("models") / "model.safetensors"

MAX_FILES = 500
MAX_FILE_BYTES = 4 * 2**30
"""Of one file: sixty times the weights of the paper's widest network."""

DATA_SUFFIXES = frozenset(
    {"", ".conf", ".csv", ".jpg", ".json", ".md", ".png", ".safetensors", ".svg", ".txt", ".yaml", ".yml"}
)
"""Endings of what a manifest lists. What is not among them is code, a pickle or something that no part of this package
reads; :func:`~accunet_monai.bundle.verify_bundle` refuses it."""

_OPTIONAL = ("mlflow_run", "dataset_digest")
_RENEW = "Get the bundle anew; if the change is yours, write the manifest again: accunet bundle manifest {}"


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 (hexadecimal) of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of a ``manifest.json``.

    Attributes:
        name, version: of the bundle.
        files: path inside the bundle, with ``/`` → entry.
        mlflow_run: the run that made the weights, if one is known.
        dataset_digest: of what they were trained on, if known.
    """

    name: str
    version: str
    files: Mapping[str, FileEntry]
    mlflow_run: str | None = None
    dataset_digest: str | None = None


def write_manifest(bundle: Path, *, mlflow_run: str | None = None, dataset_digest: str | None = None) -> Path:
    """Write the bundle's manifest anew; returns its path.

    Where the weights have not changed, ``mlflow_run`` and ``dataset_digest`` of the earlier manifest are kept.

    Raises:
        BundleError: ``BUNDLE_LINK``, ``BUNDLE_FILE`` or ``BUNDLE_TOO_LARGE`` for what no manifest can list, and
            ``BUNDLE_INVALID`` for metadata that cannot be read.
    """
    found, problems = bundle_files(bundle)
    if problems:
        raise problems[0]
    listed = [path for path in found if is_data(path)]
    files = {path.as_posix(): file_entry(bundle / path) for path in listed}
    metadata = read_plain(bundle / "configs" / "metadata.json", within=bundle)
    about = {"mlflow_run": mlflow_run, "dataset_digest": dataset_digest}
    try:
        earlier = read_manifest(bundle)
    except BundleError:
        earlier = None
    weights = WEIGHTS.as_posix()
    if earlier and weights in files and earlier.files.get(weights) == files[weights]:
        about = {key: value or getattr(earlier, key) for key, value in about.items()}
    content = {
        "name": str(metadata.get("name", bundle.name)),
        "version": str(metadata.get("version", "")),
        **{key: value for key, value in about.items() if value},
        "files": {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in files.items()},
    }
    with atomic_output(bundle / MANIFEST) as stream:
        stream.write(json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8") + b"\n")
    return bundle / MANIFEST


def read_manifest(bundle: Path) -> Manifest | None:
    """The bundle's manifest, ``None`` when it has none.

    Raises:
        BundleError: ``BUNDLE_INVALID`` for one that is not as :func:`write_manifest` writes it, ``BUNDLE_LINK``.
    """
    path = bundle / MANIFEST
    if not os.path.lexists(path):
        return None
    content = read_plain(path, within=bundle)
    try:
        files = {_checked_name(name): _entry(**entry) for name, entry in content.pop("files").items()}
        texts = {key: content.pop(key) for key in ("name", "version", *_OPTIONAL) if key in content}
        if content or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(f"unknown keys {sorted(content)}" if content else "a value that is no text")
        return Manifest(files=files, **texts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        hint = _RENEW.format(bundle)
        raise BundleError("BUNDLE_INVALID", f"no usable manifest ({error}).", path=path, hint=hint) from error


def check_weights(bundle: Path) -> Path:
    """Path of the bundle's weights, which are as its manifest says, if it has one.

    Raises:
        BundleError: ``BUNDLE_DIGEST`` for weights that were exchanged or damaged since, ``BUNDLE_LINK``,
            ``BUNDLE_TOO_LARGE``, and what :func:`read_manifest` raises.
    """
    path = bundle / WEIGHTS
    check_inside(path, bundle)
    manifest = read_manifest(bundle)
    if path.is_file():
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BundleError("BUNDLE_TOO_LARGE", f"more than {MAX_FILE_BYTES} bytes.", path=path)
        if manifest is not None:
            check_file(bundle, WEIGHTS, manifest)
    return path


def check_file(bundle: Path, name: Path, manifest: Manifest) -> None:
    """Hold a file of the bundle, by its path inside, against the manifest.

    Raises:
        BundleError: ``BUNDLE_DIGEST`` for a file that is missing, another or not listed.
    """
    path = bundle / name
    expected = manifest.files.get(name.as_posix())
    found = file_entry(path) if path.is_file() else None
    if expected is None or found != expected:
        wanted = "not in the manifest" if expected is None else f"expected {_said(expected)}"
        message = f"{wanted}, found {'no such file' if found is None else _said(found)}."
        raise BundleError("BUNDLE_DIGEST", message, path=path, hint=_RENEW.format(bundle))


def manifest_digest(bundle: Path) -> str | None:
    """The sha256 of the manifest itself, which stands for the whole bundle; ``None`` without a manifest."""
    path = bundle / MANIFEST
    return file_entry(path).sha256 if path.is_file() else None


def file_entry(path: Path) -> FileEntry:
    """Size and sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return FileEntry(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def is_data(path: Path) -> bool:
    """Whether a manifest lists a file of that name: hidden files and those of other endings it does not."""
    return path.suffix.lower() in DATA_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def bundle_files(bundle: Path) -> tuple[list[Path], list[BundleError]]:
    """(paths inside the bundle of all its files but the manifest, sorted; what is wrong with the folder).

    Wrong are links out of the folder or to nowhere (``BUNDLE_LINK``), pipes and devices (``BUNDLE_FILE``), and more
    than ``MAX_FILES`` files or a file of more than ``MAX_FILE_BYTES`` (``BUNDLE_TOO_LARGE``).
    """
    files: list[Path] = []
    problems: list[BundleError] = []
    for path in _walk(bundle):
        try:
            check_inside(path, bundle)
            status = path.stat()
        except BundleError as error:
            problems.append(error)
            continue
        except OSError as error:
            problems.append(BundleError("BUNDLE_LINK", f"leads to nothing ({error}).", path=path))
            continue
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            problems.append(BundleError("BUNDLE_FILE", "neither a file nor a folder.", path=path, hint="Remove it."))
        elif status.st_size > MAX_FILE_BYTES:
            problems.append(BundleError("BUNDLE_TOO_LARGE", f"more than {MAX_FILE_BYTES} bytes.", path=path))
        elif len(files) == MAX_FILES:
            problems.append(BundleError("BUNDLE_TOO_LARGE", f"more than {MAX_FILES} files.", path=bundle))
            break
        else:
            files.append(path.relative_to(bundle))
    return files, problems


def _walk(bundle: Path) -> Iterator[Path]:
    """Files, and links to folders: these are not followed."""
    for folder, folders, names in os.walk(bundle):
        folders.sort()
        for name in sorted([*names, *folders]):
            path = Path(folder) / name
            if path != bundle / MANIFEST and (name in names or path.is_symlink()):
                yield path


def _entry(size: Any, sha256: Any) -> FileEntry:
    if not isinstance(size, int) or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", str(sha256)):
        raise ValueError(f"no size and sha256: {size!r}, {sha256!r}")
    return FileEntry(size, sha256)


def _checked_name(name: str) -> str:
    """A path inside the bundle, in the one form there is for it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or path.as_posix() != name or name in ("", "."):
        raise ValueError(f"not a path inside the bundle: {name!r}")
    return name


def _said(entry: FileEntry) -> str:
    return f"{entry.size} bytes of sha256 {entry.sha256}"
