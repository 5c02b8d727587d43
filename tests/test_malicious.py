"""Every bundle of the malicious corpus is refused with its reason, and nothing of it runs; its payloads are no duds."""

from __future__ import annotations

import contextlib
import logging.config
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from accunet_monai.bundle import Predictor, bundle_problems, find_bundle, load_bundle, verify_bundle, write_manifest
from accunet_monai.bundle.manifest import MANIFEST
from accunet_monai.errors import AccunetError, BundleError
from tests import made_bundle
from tests.malicious import CASES

NAME = "hippocampus_mri"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle in whose place a spoilt one is put; the real one's files, but weights of little width."""
    bundle = made_bundle.copied_bundle(find_bundle(NAME), tmp_path_factory.mktemp("good"))
    made_bundle.random_weights(bundle, torch.zeros(1, 5, 64, 48))
    config = made_bundle.read_config(bundle, "inference")
    for name in ("train", "evaluate"):
        other = made_bundle.read_config(bundle, name)
        made_bundle.write_config(bundle, name, {**other, "network_def": config["network_def"]})
    return bundle


@pytest.fixture
def bundle(good: Path, tmp_path: Path) -> Path:
    return made_bundle.copied_bundle(good, tmp_path)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def test_the_bundle_that_is_spoilt_is_good(bundle: Path) -> None:
    write_manifest(bundle)
    verify_bundle(bundle)
    load_bundle(bundle)


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_refused_with_its_reason_and_nothing_of_it_runs(name: str, bundle: Path, canary: Path) -> None:
    case = CASES[name]
    case.spoil(bundle, canary)
    if case.opens:
        load_bundle(bundle)
    else:
        with pytest.raises(AccunetError) as caught:
            load_bundle(bundle)
        assert caught.value.code == case.code, caught.value
        assert str(caught.value.path).startswith(str(bundle))
    assert not canary.exists()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.builds])
def test_verify_names_every_case_without_a_reason_beside(name: str, bundle: Path, canary: Path) -> None:
    case = CASES[name]
    case.spoil(bundle, canary)
    if not (bundle / MANIFEST).exists():
        with contextlib.suppress(BundleError):  # of some bundles none can be written
            write_manifest(bundle)
    codes = {problem.code for problem in bundle_problems(bundle)}
    assert codes - {"BUNDLE_NO_MANIFEST"} == {case.code}
    with pytest.raises(BundleError, match=case.code) as caught:
        verify_bundle(bundle)
    assert caught.value.code == "BUNDLE_UNVERIFIED"
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.code == "BUNDLE_FILE" and name != "pipe"]
)
def test_without_strictness_what_nobody_opens_is_passed_over(name: str, bundle: Path, canary: Path) -> None:
    CASES[name].spoil(bundle, canary)
    assert verify_bundle(bundle, strict=False) is None
    assert not canary.exists()


def test_a_pipe_in_place_of_a_config_is_not_waited_for(bundle: Path) -> None:
    for name in ("inference.yaml", "metadata.json"):
        (bundle / "configs" / name).unlink()
        os.mkfifo(bundle / "configs" / name)
        with pytest.raises(BundleError, match="no such file") as caught:
            Predictor(bundle)
        assert caught.value.code == "BUNDLE_INVALID"
    assert {problem.code for problem in bundle_problems(bundle)} >= {"BUNDLE_FILE", "BUNDLE_INVALID"}


# ----------------------------------------------------------------------------------------------------------------------
# The payloads fire where nobody refuses them


@pytest.mark.parametrize("name", ["expression", "os.system", "deep target", "_requires_"])
def test_configs_fire_in_monais_own_parser(name: str, bundle: Path, canary: Path) -> None:
    CASES[name].spoil(bundle, canary)
    parser = ConfigParser(made_bundle.read_config(bundle, "inference"))
    for section in ("network_def", "inferer"):
        try:
            parser.get_parsed_content(section)
        except RuntimeError:  # what comes out of it is no network
            continue
    assert canary.exists()


def test_debug_opens_a_debugger_in_monais_own_parser(
    bundle: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "breakpointhook", canary.touch)
    CASES["_debug_"].spoil(bundle, canary)
    with pytest.warns(UserWarning, match="pdb"):
        ConfigParser(made_bundle.read_config(bundle, "inference")).get_parsed_content("inferer")
    assert canary.exists()


def test_references_double_in_monais_own_parser() -> None:
    levels = 10
    pair = [{"_target_": "monai.transforms.Compose", "transforms": [f"@t{n}", f"@t{n}"]} for n in range(levels)]
    config = {"t0": {"_target_": "monai.transforms.Identityd", "keys": "image"}}
    config |= {f"t{n + 1}": compose for n, compose in enumerate(pair)}
    built = ConfigParser(config).get_parsed_content(f"t{levels}")
    assert len(built.flatten().transforms) == 2**levels


def test_a_dtype_can_be_as_large_as_one_likes() -> None:
    assert np.empty([], dtype="S100000000").nbytes == 100_000_000  # what MONAI does with a dtype's name


def test_yaml_fires_in_the_loader_that_is_not_safe(bundle: Path, canary: Path) -> None:
    CASES["python/object"].spoil(bundle, canary)
    yaml.unsafe_load((bundle / "configs" / "inference.yaml").read_text(encoding="utf-8"))
    assert canary.exists()


@pytest.mark.parametrize("name", ["model.pt", "torch file as weights"])
def test_torch_files_fire_in_torch_load(name: str, bundle: Path, canary: Path) -> None:
    CASES[name].spoil(bundle, canary)
    if name == "torch file as weights":
        (bundle / "models" / "model.safetensors").rename(bundle / "models" / "model.pt")
    torch.load(bundle / "models" / "model.pt", weights_only=False)
    assert canary.exists()


def test_pickles_fire_in_pickle(bundle: Path, canary: Path) -> None:
    CASES["pickle as weights"].spoil(bundle, canary)
    pickle.loads((bundle / "models" / "model.safetensors").read_bytes())
    assert canary.exists()


def test_logging_conf_fires_in_the_standard_library(bundle: Path, canary: Path) -> None:
    CASES["logging.conf"].spoil(bundle, canary)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logging.config.fileConfig(bundle / "configs" / "logging.conf", disable_existing_loggers=False)
    finally:
        root.handlers[:], root.level = before
    assert canary.exists()


def test_a_module_fires_when_imported(bundle: Path, canary: Path) -> None:
    CASES["a module"].spoil(bundle, canary)
    exec((bundle / "scripts" / "__init__.py").read_text(encoding="utf-8"))
    assert canary.exists()
