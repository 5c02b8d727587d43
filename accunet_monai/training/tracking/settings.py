"""What a run was started with: the resolved config as flat parameters, package versions, machine, state of git."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from accunet_monai import __version__
from accunet_monai.training.resume import HARMLESS

_LONGEST_PARAM = 500  # characters: MLflow's limit of a parameter's value is 6000, nobody reads that in a table
_NO_OPTIONS = HARMLESS - {"compile", "device", "workers"} | {"register", "val_interval"}
_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel", "mlflow")


def resolved_config(parser: ConfigParser) -> dict[str, Any]:
    """The merged config with its top-level expressions and references replaced by their values, where these are plain.

    Args:
        parser: of a workflow that has been initialised.
    """
    config: dict[str, Any] = dict(parser.get())
    for key, value in config.items():
        if isinstance(value, str) and value.startswith(("$", "@")):
            found = parser.get_parsed_content(key)
            if found is None or isinstance(found, str | int | float | bool):
                config[key] = found
    return config


def params_of(config: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, str]:
    """Name → value as text, for MLflow's table of parameters; long values are cut.

    These are the config's options (top-level plain values, but for those that say only where things lie and how the
    training is run) and, from deeper down, plain values that are not as in the bundle's own config. MLflow writes all
    parameters of a run above each of its pictures: more would hide them, and ``config.yaml`` has everything.

    Args:
        config: resolved.
        original: the bundle's own.
    """
    usual = dict(_flatten(original))
    found = {}
    for name, value in _flatten(config):
        plain = isinstance(value, str | int | float) and not str(value).startswith(("$", "@"))
        option = "." not in name and name not in _NO_OPTIONS
        changed = "." in name and bool(usual) and usual.get(name) != value
        if plain and (option or changed):
            found[name] = str(value)[:_LONGEST_PARAM]
    return found


def config_text(config: Mapping[str, Any]) -> str:
    """The whole config as YAML."""
    return str(yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that decide what comes out, and the machine."""
    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    found["version.accunet-monai"] = __version__
    for package in _PACKAGES:
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, str]:
    """Commit and branch of the checkout the bundle lies in, and whether it was changed since; nothing outside one."""
    asked = (["rev-parse", "HEAD"], ["rev-parse", "--abbrev-ref", "HEAD"], ["status", "--porcelain", "."])
    try:
        commit, branch, status = (
            subprocess.run(  # noqa: S603 (fixed arguments)
                ["git", "-C", str(folder), *arguments],  # noqa: S607
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for arguments in asked
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    changed = "yes" if status else "no"
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.branch": branch, "git.changed": changed}


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, scalar) of a nested config; metadata is left out, it is in the bundle."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key != "_meta_":
                yield from _flatten(item, f"{prefix}{key}.")
    elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(i, Mapping) for i in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{prefix}{index}.")
    else:
        yield prefix.rstrip("."), value


def _plain(value: Any) -> Any:
    """The config with everything that YAML cannot say turned into text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
