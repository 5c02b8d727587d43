"""Files that are not what they seem, lead elsewhere, cannot be read to the end, or would run if they were opened."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import torch

from accunet_monai.bundle import write_manifest
from accunet_monai.bundle.plain import MAX_CONFIG_BYTES
from tests import made_bundle
from tests.malicious.case import Case, file

INFERENCE, METADATA = "configs/inference.yaml", "configs/metadata.json"
WEIGHTS = "models/model.safetensors"
INVALID = "BUNDLE_INVALID"

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
EVIL_LOGGING = """[loggers]
keys=root
[handlers]
keys=h
[formatters]
keys=
[logger_root]
handlers=h
[handler_h]
class=StreamHandler
args=(__import__('pathlib').Path('CANARY').touch(),)
"""


class Bomb:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def pickled(name: str, code: str, *, torch_file: bool, opens: bool = False) -> Case:
    def spoil(bundle: Path, canary: Path) -> None:
        if torch_file:
            torch.save(Bomb(canary), bundle / name)
        else:
            (bundle / name).write_bytes(pickle.dumps(Bomb(canary)))

    return Case(spoil, code, opens=opens)


def tensors(header: dict[str, Any], data: bytes = bytes(16), length: int | None = None) -> bytes:
    """A safetensors file whose header says what is asked for, true or not."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, *shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def linked(name: str) -> Case:
    """A file moved out of the bundle, and a link to it."""

    def spoil(bundle: Path, canary: Path) -> None:
        outside = bundle.parent / "outside"
        outside.mkdir(exist_ok=True)
        target = outside / Path(name).name
        (bundle / name).rename(target)
        (bundle / name).symlink_to(target)

    return Case(spoil, "BUNDLE_LINK")


def _link_to_nowhere(bundle: Path, canary: Path) -> None:
    (bundle / "docs").symlink_to(bundle / "nowhere")


def _linked_folder(bundle: Path, canary: Path) -> None:
    shutil.copytree(bundle / "configs", bundle.parent / "elsewhere")
    (bundle / "docs").symlink_to(bundle.parent / "elsewhere", target_is_directory=True)


def _pipe(bundle: Path, canary: Path) -> None:
    os.mkfifo(bundle / "pipe")


def _exchanged_weights(bundle: Path, canary: Path) -> None:
    write_manifest(bundle)
    path = bundle / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the least that can be another network
    path.write_bytes(content)


def _manifest_of_elsewhere(bundle: Path, canary: Path) -> None:
    path = write_manifest(bundle)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"]["../outside"] = manifest["files"][WEIGHTS]
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _listed_twice(bundle: Path, canary: Path) -> None:
    path = write_manifest(bundle)
    text = path.read_text(encoding="utf-8")
    entry = f'"{WEIGHTS}": {{"size": 1, "sha256": "{"0" * 64}"}},'
    path.write_text(text.replace('"files": {', f'"files": {{{entry}'), encoding="utf-8")


def _sections_of_another_training(bundle: Path, canary: Path) -> None:
    config = made_bundle.read_config(bundle, "train")
    config["preprocessing"]["transforms"][3]["lower"] = 5.0
    made_bundle.write_config(bundle, "train", config)


CASES: dict[str, Case] = {
    # YAML and JSON
    "python/object": file(INFERENCE, "network_def: !!python/object/apply:os.system ['touch CANARY']\n", INVALID),
    "python/name": file(INFERENCE, "network_def: !!python/name:os.system\n", INVALID),
    "endless alias": file(INFERENCE, "network_def: &a {_target_: x, y: *a}\n", INVALID),
    "a billion laughs": file(INFERENCE, LAUGHS + "network_def: {_target_: x, act: *a39}\n", INVALID),
    "nested YAML": file(INFERENCE, "a: " + "[" * 5000 + "]" * 5000, INVALID),
    "nested a little too deeply": file(INFERENCE, "a: " + "[" * 40 + "]" * 40, INVALID),
    "nested JSON": file(METADATA, '{"a":' * 5000 + "1" + "}" * 5000, INVALID),
    "not UTF-8": file(INFERENCE, b"network_def: \xff\xfe", INVALID),
    "UTF-16": file(METADATA, "{}".encode("utf-16"), INVALID),
    "too large": file(METADATA, '{"a": "' + "x" * MAX_CONFIG_BYTES + '"}', INVALID),
    "slow number": file(INFERENCE, "a: 1" + ":1" * MAX_CONFIG_BYTES, INVALID),
    "two documents": file(INFERENCE, "a: 1\n---\nb: 2\n", INVALID),
    "a key twice in YAML": file(INFERENCE, "network_def: {_target_: a, _target_: b}\n", INVALID),
    "a key twice in JSON": file(METADATA, '{"version": "1", "version": "2"}', INVALID),
    "NaN in JSON": file(METADATA, '{"version": NaN}', INVALID),
    "Infinity in JSON": file(METADATA, '{"version": -Infinity}', INVALID),
    "a number of a million digits": file(METADATA, '{"version": ' + "9" * 100_000 + "}", INVALID),
    "YAML that is code": file(INFERENCE, "__import__('pathlib').Path('CANARY').touch()", INVALID),
    # Files that are no files
    "linked config": linked(INFERENCE),
    "linked metadata": linked(METADATA),
    "linked weights": linked(WEIGHTS),
    "linked folder": Case(_linked_folder, "BUNDLE_LINK", opens=True),
    "link to nowhere": Case(_link_to_nowhere, "BUNDLE_LINK", opens=True),
    "pipe": Case(_pipe, "BUNDLE_FILE", opens=True),
    # Weights
    "pickle as weights": pickled(WEIGHTS, "WEIGHTS_UNREADABLE", torch_file=False),
    "torch file as weights": pickled(WEIGHTS, "WEIGHTS_UNREADABLE", torch_file=True),
    "header longer than the file": file(WEIGHTS, tensors({}, length=2**62), "WEIGHTS_UNREADABLE"),
    "header of no length": file(WEIGHTS, tensors({}, length=0), "WEIGHTS_UNREADABLE"),
    "tensor beyond the file": file(WEIGHTS, tensors({"a": tensor(0, 2**40, 2**38)}), "WEIGHTS_UNREADABLE"),
    "tensor over another": file(WEIGHTS, tensors({"a": tensor(0, 12, 3), "b": tensor(4, 16, 3)}), "WEIGHTS_UNREADABLE"),
    "tensor before the file": file(WEIGHTS, tensors({"a": tensor(-16, 0, 4)}), "WEIGHTS_UNREADABLE"),
    "shape that is not the data's": file(WEIGHTS, tensors({"a": tensor(0, 16, 2**40)}), "WEIGHTS_UNREADABLE"),
    "shape that overflows": file(WEIGHTS, tensors({"a": tensor(0, 16, 2**62, 4, 4)}), "WEIGHTS_UNREADABLE"),
    "bytes nobody owns": file(WEIGHTS, tensors({"a": tensor(0, 12, 3)}), "WEIGHTS_UNREADABLE"),
    "exchanged weights": Case(_exchanged_weights, "BUNDLE_DIGEST"),
    # The manifest
    "manifest of elsewhere": Case(_manifest_of_elsewhere, INVALID),
    "file listed twice": Case(_listed_twice, INVALID),
    "manifest is a list": file("manifest.json", "[]", INVALID),
    "manifest without files": file("manifest.json", '{"name": "a", "version": "1"}', INVALID),
    "manifest with more": file("manifest.json", '{"name": "a", "version": "1", "files": {}, "run": "x"}', INVALID),
    # What a Predictor does not even open
    "model.pt": pickled("models/model.pt", "BUNDLE_FILE", torch_file=True, opens=True),
    "model.ts": pickled("models/model.ts", "BUNDLE_FILE", torch_file=False, opens=True),
    "a module": file("scripts/__init__.py", "open('CANARY', 'w').close()", "BUNDLE_FILE", opens=True),
    "a hidden file": file("configs/.inference.yaml", "a: 1", "BUNDLE_FILE", opens=True),
    "logging.conf": file("configs/logging.conf", EVIL_LOGGING, "BUNDLE_LOGGING", opens=True),
    "logging.conf that imports": file(
        "configs/logging.conf", "[formatter_f]\nclass=antigravity.Formatter\n", "BUNDLE_LOGGING", opens=True
    ),
    "sections of another training": Case(_sections_of_another_training, "BUNDLE_SECTIONS", opens=True),
    "aliases in train": file("configs/train.yaml", "a: &a 1\nb: *a\n", INVALID, opens=True),
}
