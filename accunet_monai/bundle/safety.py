"""Whether a bundle is data and nothing more: its files, manifest, configs and the header of its weights, all unrun."""

from __future__ import annotations

import configparser
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from accunet_monai.bundle.manifest import (
    MANIFEST,
    WEIGHTS,
    bundle_files,
    check_file,
    is_data,
    manifest_digest,
    read_manifest,
)
from accunet_monai.bundle.plain import MAX_CONFIG_BYTES, read_plain
from accunet_monai.bundle.sections import config_file, literal_sections, read_literal_sections, read_metadata
from accunet_monai.errors import AccunetError, BundleError, NetworkError

LOGGING = Path("configs") / "logging.conf"

_LOGGING_VALUES = {
    "class": ("StreamHandler", "logging.StreamHandler", "logging.Formatter"),
    "args": ("()", "(sys.stdout,)", "(sys.stderr,)"),
    "kwargs": ("{}",),
}
"""What ``logging.config.fileConfig`` evaluates as Python, and the texts that only print to the terminal."""


def verify_bundle(bundle: str | os.PathLike[str], *, strict: bool = True, digest: str | None = None) -> str | None:
    """Refuse a bundle that is not what its manifest says, or that asks for more than a Predictor gives.

    Nothing of the bundle is run, imported or unpickled, and no weights are loaded.

    Args:
        bundle: its folder.
        strict: the bundle must have a manifest that lists all its files, and consist of data only: no pickle
            (``model.pt``), program (``model.ts``) or other file that the package does not read. Without it these are
            passed over: a Predictor never opens them.
        digest: the sha256 that the manifest itself must have; it then stands for the whole bundle.

    Returns:
        The manifest's sha256, ``None`` without a manifest.

    Raises:
        BundleError: ``BUNDLE_UNVERIFIED``, naming every problem that :func:`bundle_problems` finds.
    """
    problems = list(bundle_problems(bundle, strict=strict, digest=digest))
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise BundleError("BUNDLE_UNVERIFIED", f"{count}.{listed}", path=bundle)
    return manifest_digest(Path(bundle))


def bundle_problems(
    bundle: str | os.PathLike[str], *, strict: bool = True, digest: str | None = None
) -> Iterator[AccunetError]:
    """What speaks against a bundle, one typed error each; see :func:`verify_bundle`."""
    found = {str(problem): problem for problem in _problems(Path(bundle).resolve(), strict, digest)}
    yield from found.values()


def _problems(folder: Path, strict: bool, digest: str | None) -> Iterator[AccunetError]:
    files, problems = bundle_files(folder)
    yield from problems
    if any(problem.code == "BUNDLE_TOO_LARGE" for problem in problems):
        return  # its files are not read
    if strict:
        yield from _no_data(folder, files)
    yield from _against_manifest(folder, files, strict, digest)
    for check in (read_metadata, read_literal_sections, _check_logging, _check_weights_header):
        yield from _raised(check, folder)
    for name in ("train", "evaluate"):
        yield from _raised(_check_equal_sections, folder, name)


def _raised(check: Callable[..., Any], *args: Any) -> Iterator[AccunetError]:
    try:
        check(*args)
    except AccunetError as error:
        yield error


def _no_data(bundle: Path, files: list[Path]) -> Iterator[BundleError]:
    for file in files:
        if not is_data(file):
            message = "not data: code, a pickle, or nothing that is read here."
            hint = "Keep it outside of the bundle. A Predictor never opens it."
            yield BundleError("BUNDLE_FILE", message, path=bundle / file, hint=hint)


def _against_manifest(bundle: Path, files: list[Path], strict: bool, digest: str | None) -> Iterator[AccunetError]:
    path, found = bundle / MANIFEST, manifest_digest(bundle)
    if digest is not None and digest != found:
        yield BundleError("BUNDLE_DIGEST", f"the manifest's sha256 is {found}, expected {digest}.", path=path)
    try:
        manifest = read_manifest(bundle)
    except BundleError as error:
        yield error
        return
    if manifest is None:
        if strict:
            hint = f"If you trust the files as they are: accunet bundle manifest {bundle}"
            yield BundleError("BUNDLE_NO_MANIFEST", "nothing says what the files should be.", path=path, hint=hint)
        return
    present = {file for file in files if is_data(file)} if strict else set()
    for name in sorted(present | {Path(name) for name in manifest.files}):
        yield from _raised(check_file, bundle, name, manifest)


def _check_equal_sections(bundle: Path, name: str) -> None:
    """What a network was trained or evaluated with must be what it is run with."""
    path = config_file(bundle, name)
    if path.is_file():
        expected = read_literal_sections(bundle)
        sections = literal_sections(read_plain(path, within=bundle), path)
        differ = sorted(key for key in expected | sections if sections.get(key) != expected.get(key))
        if differ:
            message = f"not the {', '.join(differ)} of the inference config."
            raise BundleError("BUNDLE_SECTIONS", message, path=path)


def _check_logging(bundle: Path) -> None:
    path = bundle / LOGGING
    if not path.is_file():
        return
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open("rb") as file:
            parser.read_string(file.read(MAX_CONFIG_BYTES).decode("utf-8"))
    except (OSError, ValueError, configparser.Error) as error:
        raise BundleError("BUNDLE_LOGGING", f"not readable ({error}).", path=path) from error
    for section in parser.values():
        for key, value in section.items():
            if key in _LOGGING_VALUES and value not in _LOGGING_VALUES[key]:
                message = f"[{section.name}] {key} = {value!r} would be evaluated as Python by monai.bundle run."
                raise BundleError("BUNDLE_LOGGING", message, path=path)


def _check_weights_header(bundle: Path) -> None:
    """Header and size of the weights agree; safetensors checks that no tensor lies outside of the file or on others."""
    path = bundle / WEIGHTS
    if not path.is_file():
        raise NetworkError("WEIGHTS_MISSING", "no such weights file.", path=path)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise NetworkError("WEIGHTS_UNREADABLE", f"not a readable safetensors file ({error}).", path=path) from error
