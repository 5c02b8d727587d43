"""A case of the corpus, and how a config is spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import made_bundle

Spoil = Callable[[Path, Path], None]
"""(bundle, canary) → nothing: changes the bundle so that its payload would make the canary."""

Config = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A spoilt bundle.

    Attributes:
        spoil: makes it of a good one.
        code: with which it is refused.
        opens: a Predictor opens it all the same, without touching the payload; only ``verify_bundle`` refuses it.
        builds: only building the components shows that something is wrong, which ``verify_bundle`` does not do.
    """

    spoil: Spoil
    code: str
    opens: bool = False
    builds: bool = False


def at(*keys: str | int) -> Callable[[Config, Any], None]:
    """A function that puts a value at a nested place of the config."""

    def put(config: Config, value: Any) -> None:
        place: Any = config
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return put


def in_config(put: Callable[[Config, Any], None], value: Any, code: str, *, builds: bool = False) -> Case:
    """A value put into the inference config, beside something evil outside of the literal sections."""

    def spoil(bundle: Path, canary: Path) -> None:
        config = made_bundle.read_config(bundle, "inference")
        put(config, json.loads(json.dumps(value).replace("CANARY", str(canary))))
        config["evil"] = {"_target_": "pathlib.Path.touch", "self": f"$__import__('pathlib').Path({str(canary)!r})"}
        made_bundle.write_config(bundle, "inference", config)

    return Case(spoil, code, builds=builds)


def file(name: str, content: str | bytes, code: str, *, opens: bool = False) -> Case:
    """A file of the bundle replaced or added."""

    def spoil(bundle: Path, canary: Path) -> None:
        data = content if isinstance(content, bytes) else content.replace("CANARY", str(canary)).encode()
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_bytes(data)

    return Case(spoil, code, opens=opens)


WIDTH = at("network_def", "base_filters")
FIRST = at("preprocessing", "transforms", 0)
LAST = at("preprocessing", "transforms", 4)
AXCODES = at("preprocessing", "transforms", 2, "axcodes")
INFERER = at("inferer")
POST = at("postprocessing", "transforms", 0)
