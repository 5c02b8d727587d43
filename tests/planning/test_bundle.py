"""A planned bundle is the shipped one's configs with the plan's values, trains at once and passes every check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import verify_metadata
from rich.console import Console
from typer.testing import CliRunner

from accunet_monai.bundle import (
    LITERAL_SECTIONS,
    find_bundle,
    load_bundle,
    read_literal_sections,
    verify_bundle,
    write_manifest,
)
from accunet_monai.cli import app
from accunet_monai.errors import DatasetError
from accunet_monai.planning import plan_dataset
from accunet_monai.planning.configs import TEMPLATE
from accunet_monai.summary import install_weights
from accunet_monai.volumes import read_label_map, read_segments
from accunet_monai.workflow import run_config
from tests.planning import made

CONFIGS = ("train", "evaluate", "inference")
OWN = {"width": 1, "batch_size": 4, "max_epochs": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT in three spacings, so that slices are resampled."""
    spacings = [(1.0, 1.0, 3.0), (1.2, 1.2, 3.0), (1.4, 1.4, 3.0)]
    return made.decathlon(tmp_path_factory.mktemp("dataset"), cases=3, ct=True, spacings=spacings)


@pytest.fixture(scope="module")
def bundle(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "made_ct"
    return plan_dataset(dataset, folder, memory_gib=1, own=OWN, console=Console(quiet=True))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{prefix}{key}.")
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from flat(item, f"{prefix}{index}.")
    else:
        yield prefix.rstrip("."), value


def test_training_differs_from_the_shipped_one_only_where_a_plan_chooses(bundle: Path) -> None:
    shipped = dict(flat(read(find_bundle(TEMPLATE) / "configs" / "train.yaml")))
    planned = dict(flat(read(bundle / "configs" / "train.yaml")))
    changed = {key for key in shipped.keys() | planned.keys() if shipped.get(key) != planned.get(key)}
    changed = {key for key in changed if key.split(".")[0] not in (*LITERAL_SECTIONS, "labels")}
    named = {key for key in changed if TEMPLATE in str(shipped.get(key)) or "decathlon" in str(shipped.get(key))}
    assert changed - named <= {
        "dataset_dir",
        "download",
        "initialize",
        "imports",
        "max_epochs",
        "batch_size",
        "val_interval",
        *(f"train.dataset.{key}" for key in ("roi_size", "spatial_dim", "context_slices", "mirror")),
        *(f"train.sampler.{key}" for key in ("slices_per_epoch", "empty", "balance")),
        "train.augmentation.mirror_slices",
        "train.tracker.spatial_dim",
    }
    assert all(
        key in planned
        for key in shipped
        if key not in ("download", "train.augmentation.mirror_slices") and not key.startswith(LITERAL_SECTIONS)
    )
    assert planned["train.dataset.spatial_dim"] == 2
    assert planned["train.dataset.roi_size"] == [32, 32]
    assert planned["train.dataset.mirror"] == [0]
    assert not any(TEMPLATE in str(value) or "download" in str(value) for value in planned.values())


def test_literal_sections_are_one_and_are_what_a_predictor_builds(bundle: Path) -> None:
    sections = [{key: read(bundle / "configs" / f"{name}.yaml")[key] for key in LITERAL_SECTIONS} for name in CONFIGS]
    assert sections[0] == sections[1] == sections[2] == read_literal_sections(bundle)
    transforms = {item["_target_"].split(".")[-1]: item for item in sections[0]["preprocessing"]["transforms"]}
    assert transforms["ResampleVolumed"]["spacing"] == [1.2, 1.2, -1.0]
    window = transforms["ScaleIntensityRanged"]
    plan = read(bundle / "docs" / "plan.yaml")
    mean, deviation = plan["normalisation"]["mean"], plan["normalisation"]["deviation"]
    assert [window["a_min"], window["a_max"]] == plan["window"]
    assert window["b_min"] == pytest.approx((plan["window"][0] - mean) / deviation, abs=1e-3)


def test_metadata_and_segments_are_valid(bundle: Path, root: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_bytes((root / "tests" / "meta_schema.json").read_bytes())
    verify_metadata(
        meta_file=str(bundle / "configs" / "metadata.json"),
        filepath=str(schema),
        hash_val=hashlib.sha256(schema.read_bytes()).hexdigest(),
        hash_type="sha256",
    )
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["input_contract"]["rules"][0] == {"quantity": "modality", "allowed": ["CT"], "otherwise": "refuse"}
    liver, tumour = read_segments(bundle / "configs" / "segments.yaml").segments
    assert (liver.type.code, liver.type.scheme) == ("10200004", "SCT")
    assert (tumour.name, tumour.type.code) == ("tumour", "91723000")  # not a name of DICOM's table
    assert liver.colour != tumour.colour


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
def test_it_trains_at_once_and_its_weights_make_it_whole(
    bundle: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_config(bundle, "train", {"runs_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "cache")})
    install_weights(bundle, tmp_path / "runs" / "made_ct" / "best.safetensors")
    write_manifest(bundle)
    assert verify_bundle(bundle, strict=True)
    prediction = load_bundle(bundle).predict(dataset / "imagesTr" / "case_2.nii.gz")
    reference = read_label_map(dataset / "labelsTr" / "case_2.nii.gz")
    assert prediction.label_map.shape == reference.shape  # through the resampling and back


def test_an_edited_plan_is_followed(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    edited = tmp_path / "plan.yaml"
    text = (bundle / "docs" / "plan.yaml").read_text()
    assert "# Warning: [SUBJECTS_FEW]" in text
    edited.write_text(
        text.replace("context_slices: 1", "context_slices: 2").replace(
            "in_plane_spacing: [1.2, 1.2]", "in_plane_spacing: null"
        )
    )
    again = plan_dataset(dataset, tmp_path / "again", memory_gib=1, plan_file=edited, console=Console(quiet=True))
    sections = read_literal_sections(again)
    assert sections["network_def"]["in_channels"] == 5
    assert "ResampleVolumed" not in str(sections["preprocessing"])
    assert "set by you; the plan had 1" in (again / "docs" / "README.md").read_text()
    edited.write_text("- no plan")
    with pytest.raises(DatasetError) as caught:
        plan_dataset(dataset, tmp_path / "third", plan_file=edited, console=Console(quiet=True))
    assert caught.value.code == "PLAN_INVALID"


def test_a_folder_in_use_is_left_alone(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    quiet = Console(quiet=True)
    for options in ({}, {"overwrite": True}):
        with pytest.raises(DatasetError) as caught:
            plan_dataset(dataset, taken, console=quiet, **options)  # type: ignore[arg-type]
        assert caught.value.code == "PLAN_OUTPUT"
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]
    target = plan_dataset(dataset, tmp_path / "mine", memory_gib=1, own=OWN, console=quiet)
    (target / "models" / "model.safetensors").write_text("weights")
    plan_dataset(dataset, target, memory_gib=1, own={**OWN, "max_epochs": 7}, overwrite=True, console=quiet)
    assert read(target / "configs" / "train.yaml")["max_epochs"] == 7
    assert (target / "models" / "model.safetensors").read_text() == "weights"


def test_the_command_prints_each_reason_and_refuses_with_all_problems(dataset: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    arguments = ["plan", str(dataset), "--output", str(tmp_path / "made"), "--memory", "1", "--set", "width=1"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    for told in ("slicing_axis", "0.5th to 99.5th percentile", "set by you", "written:"):
        assert told in done.output
    broken = made.decathlon(tmp_path / "broken", cases=3)
    (broken / "imagesTr" / "case_0.nii.gz").unlink()
    (broken / "labelsTr" / "case_1.nii.gz").unlink()
    refused = runner.invoke(app, ["plan", str(broken), "--output", str(tmp_path / "none")])
    assert refused.exit_code == 1
    assert "2 problems" in refused.output
    assert "[FILE_MISSING] case_0" in refused.output
    assert "[FILE_MISSING] case_1" in refused.output
    assert not (tmp_path / "none").exists()
