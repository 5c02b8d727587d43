"""JSON and YAML files read as data: of bounded size, without aliases, tags or double keys; nothing of them is run."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from accunet_monai.errors import BundleError

MAX_CONFIG_BYTES = 128 * 1024
"""Ten times the largest config of the Model Zoo. Some YAML takes time that grows with its square: 600 kB of one number
written as 1:1:1:… took 36 s, so the limit keeps any file below a few seconds."""

MAX_DEPTH = 32
"""Levels of mappings and lists; configs have about six."""


def read_plain(path: Path, within: Path | None = None) -> dict[str, Any]:
    """The mapping in a JSON or YAML file.

    Args:
        path: ends in ``.json``, ``.yaml`` or ``.yml``.
        within: a folder that the file must lie in, links followed.

    Raises:
        BundleError: ``BUNDLE_LINK`` (a link out of ``within``) or ``BUNDLE_INVALID``: missing, no regular file, larger
            than ``MAX_CONFIG_BYTES``, not UTF-8, malformed, deeper than ``MAX_DEPTH``, a key twice, a YAML alias or
            tag, NaN or infinity in JSON, or no mapping.
    """
    if within is not None:
        check_inside(path, within)
    try:
        if path.suffix not in (".json", ".yaml", ".yml"):
            raise ValueError("neither JSON nor YAML by its ending")
        if not path.is_file():  # a pipe or device would be read for ever
            raise ValueError("no such file")
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ValueError(f"more than {MAX_CONFIG_BYTES} bytes")
        text = content.decode("utf-8")
        value = _json(text) if path.suffix == ".json" else yaml.load(text, Loader=_PlainLoader)  # noqa: S506 (it is safe)
        if not isinstance(value, dict):
            raise ValueError(f"a mapping is expected, found {type(value).__name__}")
        _check_depth(value)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise BundleError("BUNDLE_INVALID", f"not readable as plain data ({reason}).", path=path) from error
    return value


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a path that leads out of ``folder`` by a link.

    Raises:
        BundleError: ``BUNDLE_LINK``.
    """
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise BundleError("BUNDLE_LINK", f"a link that leads nowhere ({error}).", path=path) from error
    if not target.is_relative_to(folder.resolve()):
        message = f"a link out of the bundle, to {target}."
        raise BundleError("BUNDLE_LINK", message, path=path, hint="Copy the bundle with what its links point to.")


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases and double keys: what stands there once is there once, and nothing hides."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # with these a small file can stand for an endless or enormous config
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        _refuse_doubles(keys)
        return super().construct_mapping(node, deep)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        mappings = [list(item.values()) for item in level if isinstance(item, dict)]
        level = [child for items in (*mappings, *(i for i in level if isinstance(i, list))) for child in items]
    if level:
        raise RecursionError


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_doubles([key for key, _ in pairs])
    return dict(pairs)


def _refuse_doubles(keys: list[str]) -> None:
    if len(set(keys)) != len(keys):
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {double!r} is there twice")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
