"""What holds for every shipped bundle: the Model Zoo's checks, equal literal sections, configs that run."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export, verify_metadata, verify_net_in_out

from accunet_monai.bundle import LITERAL_SECTIONS, label_names, load_bundle, read_literal_sections
from accunet_monai.errors import DatasetError
from accunet_monai.networks import ACCUNet
from accunet_monai.summary import export_checkpoint
from accunet_monai.volumes import read_label_map, read_volume
from accunet_monai.workflow import run_config
from tests import made_bundle

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
CONFIGS = ("train", "evaluate", "inference")
MAX_WEIGHTS_BYTES = 10_000_000
CASES = 2

FLOAT32_SPREAD = 1e-4
"""How far float32 logits may lie apart, as a share of their spread, when sums are taken in another order. On the smooth
images made here PyTorch's own float32 logits lie up to 1.3e-5 from its float64 ones."""

SHIPPED_DICE = {"hippocampus_mri": ("hippocampus", 0.86)}
"""Bundle → folder of the test data, and the mean foreground Dice that the shipped weights must reach on the validation
part of its split."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader"),  # an optional reader that MONAI registers anyway
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),  # MONAI: configs are trusted; these are ours
]


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name, scope="module")
def bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def config_path(bundle: Path, name: str) -> Path:
    return bundle / "configs" / f"{name}.yaml"


def metadata_path(bundle: Path) -> Path:
    return bundle / "configs" / "metadata.json"


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {normal(name): version.split()[0] for name, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_there_are_bundles() -> None:
    assert BUNDLES


# ----------------------------------------------------------------------------------------------------------------------
# Files


def test_the_folder_has_what_the_model_zoo_asks_for_and_no_pickle(bundle: Path) -> None:
    for name in ("LICENSE", "docs/README.md", "configs/logging.conf", *(f"configs/{name}.yaml" for name in CONFIGS)):
        assert (bundle / name).stat().st_size > 0, name
    assert {path.suffix for path in (bundle / "models").iterdir()} == {".safetensors"}
    assert not list(bundle.rglob("*.py"))
    for path in (bundle / "models").iterdir():
        assert path.stat().st_size <= MAX_WEIGHTS_BYTES
        assert path.stat().st_mode & 0o444 == 0o444  # a wheel carries the mode along


def test_no_config_names_a_place_on_somebodys_machine(bundle: Path) -> None:
    for path in [*(bundle / "configs").iterdir(), *(bundle / "docs").glob("*.md")]:
        found = re.search(r"(?<![\w:/.])/(home|root|work|tmp|Users|mnt)/", path.read_text(encoding="utf-8"))
        assert found is None, f"{path}: {found}"


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def test_literal_sections_are_literal_and_equal_in_all_configs(bundle: Path) -> None:
    configs = {name: made_bundle.read_config(bundle, name) for name in CONFIGS}
    for section in LITERAL_SECTIONS:
        assert configs["train"].get(section) == configs["evaluate"].get(section) == configs["inference"].get(section)
        assert not [text for text in strings(configs["train"].get(section)) if "$" in text or "%" in text]
    assert read_literal_sections(bundle).keys() <= set(LITERAL_SECTIONS)


def test_labels_are_named_alike_everywhere(bundle: Path) -> None:
    labels = label_names(bundle)
    for name in ("train", "evaluate"):
        named = made_bundle.read_config(bundle, name)["labels"]
        assert {int(value): label for value, label in named.items()} == labels


# ----------------------------------------------------------------------------------------------------------------------
# Metadata


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    """A copy: MONAI would download a schema to this place if it were not there."""
    path = tmp_path / "schema.json"
    path.write_bytes((ROOT / "tests" / "meta_schema.json").read_bytes())
    return path


def refused_copies(metadata: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what is wrong, metadata) with one required field less, or of the wrong type."""
    tensor = schema["definitions"]["tensor"]["required"]
    places: list[tuple[str, ...]] = [(field,) for field in (*schema["required"], "required_packages_version")]
    places += [("network_data_format", kind) for kind in ("inputs", "outputs")]
    places += [("network_data_format", "inputs", "image", field) for field in (*tensor, "modality")]
    places += [("network_data_format", "outputs", "pred", field) for field in tensor]
    for place in places:
        for wrong in (None, 7.5):
            broken = copy.deepcopy(metadata)
            inner = broken
            for key in place[:-1]:
                inner = inner[key]
            if wrong is None:
                del inner[place[-1]]
            else:
                inner[place[-1]] = wrong
            yield f"{'/'.join(place)} {'missing' if wrong is None else 'is a number'}", broken


def test_metadata_passes_and_each_broken_copy_fails(bundle: Path, schema: Path, tmp_path: Path) -> None:
    known = {
        "filepath": str(schema),
        "hash_val": hashlib.sha256(schema.read_bytes()).hexdigest(),
        "hash_type": "sha256",
    }
    verify_metadata(meta_file=str(metadata_path(bundle)), **known)
    metadata, rules = made_bundle.read_metadata(bundle), json.loads(schema.read_text(encoding="utf-8"))
    passed, broken_file = [], tmp_path / "broken.json"
    for what, broken in refused_copies(metadata, rules):
        broken_file.write_text(json.dumps(broken), encoding="utf-8")
        try:
            verify_metadata(meta_file=str(broken_file), **known)
        except ValueError as error:
            assert "Failed validating" in str(error)  # noqa: PT017 (many copies, one test)
        else:
            passed.append(what)
    assert passed == []


def test_versions_are_those_that_are_tested(bundle: Path) -> None:
    metadata, pinned = made_bundle.read_metadata(bundle), pins()
    assert metadata["version"] in metadata["changelog"]
    named = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    named |= {normal(name): version for name, version in metadata["required_packages_version"].items()}
    from accunet_monai import __version__

    assert named.pop("accunet-monai") == __version__
    assert named == {name: pinned[name] for name in named}


def test_metadata_tells_the_networks_channels(bundle: Path) -> None:
    data_format = made_bundle.read_metadata(bundle)["network_data_format"]
    network = load_bundle(bundle).network
    assert isinstance(network, ACCUNet)
    for tensor, channels in (
        (data_format["inputs"]["image"], network.in_channels),
        (data_format["outputs"]["pred"], network.out_channels),
    ):
        assert tensor["num_channels"] == channels
        assert sorted(map(int, tensor["channel_def"])) == list(range(channels))
        assert len(tensor["spatial_shape"]) == network.spatial_dims


@pytest.mark.parametrize("name", CONFIGS)
def test_verify_net_in_out(bundle: Path, name: str) -> None:
    files = {"meta_file": str(metadata_path(bundle)), "config_file": str(config_path(bundle, name))}
    verify_net_in_out("network_def", device="cpu", p=1, n=1, any=1, **files)
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out(
            "network_def", device="cpu", **files, **{"_meta_#network_data_format#outputs#pred#num_channels": 9}
        )


# ----------------------------------------------------------------------------------------------------------------------
# Export


@pytest.fixture(scope="module")
def checkpoint(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(bundle, tmp_path_factory.mktemp("export") / "model.pt")


def logits_of(bundle: Path, x: torch.Tensor) -> torch.Tensor:
    network = load_bundle(bundle).network.to(memory_format=torch.contiguous_format)  # sums in the export's order
    with torch.no_grad():
        result: torch.Tensor = network(x)
    return result


def spread_apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the spread of the expected logits."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


def random_image(bundle: Path, height: int, width: int, batch: int = 1) -> torch.Tensor:
    channels = made_bundle.read_metadata(bundle)["network_data_format"]["inputs"]["image"]["num_channels"]
    coarse = torch.randn(batch, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic")  # smooth, as images are


def test_ckpt_export_scripts_the_network_with_its_weights(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.ts"
    ckpt_export(
        "network_def", str(target), str(checkpoint), str(metadata_path(bundle)), str(config_path(bundle, "inference"))
    )
    extra = {"inference.json": ""}
    scripted = torch.jit.load(str(target), _extra_files=extra).eval()
    for height, width in ((48, 64), (37, 50)):  # of any size, as no traced network is
        x = random_image(bundle, height, width, batch=2)
        with torch.no_grad():
            assert spread_apart(scripted(x), logits_of(bundle, x)) <= FLOAT32_SPREAD
    assert json.loads(extra["inference.json"])["network_def"] == read_literal_sections(bundle)["network_def"]


def test_onnx_export_gives_the_same_logits_at_other_sizes(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    target = tmp_path / "model.onnx"
    example = list(random_image(bundle, 48, 64, batch=2).shape)
    onnx_export(
        "network_def",
        str(target),
        str(checkpoint),
        str(metadata_path(bundle)),
        str(config_path(bundle, "inference")),
        use_trace=True,  # so that MONAI hands the following on to torch.onnx.export
        input_shape=example,
        converter_kwargs={
            "input_names": ["image"],
            "output_names": ["pred"],
            "dynamo": True,
            "optimize": False,  # takes longest; the graph computes the same
            "dynamic_shapes": {"x": {0: "batch", 2: "height", 3: "width"}},
        },
    )
    session = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    for batch, height, width in ((2, 48, 64), (1, 80, 48), (3, 35, 51)):
        x = random_image(bundle, height, width, batch)
        (found,) = session.run(None, {"image": x.numpy()})
        assert spread_apart(torch.from_numpy(found), logits_of(bundle, x)) <= FLOAT32_SPREAD


# ----------------------------------------------------------------------------------------------------------------------
# The split


def split_of(bundle: Path) -> dict[str, Any]:
    path = bundle / "configs" / "split.json"
    if not path.is_file():
        pytest.skip("this bundle has no split")
    split: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return split


def test_no_subject_is_in_two_parts_and_the_parts_cover_all_cases(bundle: Path) -> None:
    split = split_of(bundle)
    parts, subjects = split["parts"], split["subjects"]
    cases = [case for names in parts.values() for case in names]
    assert len(set(cases)) == len(cases)
    if subjects:  # made volumes have none
        assert sorted(cases) == sorted(subjects)
    for first, second in combinations(parts, 2):
        owners = ({subjects.get(case, case) for case in parts[part]} for part in (first, second))
        assert set.isdisjoint(*owners)
    assert {"training", "validation"} <= parts.keys()
    assert all(parts.values())


def test_both_hippocampi_of_a_subject_are_on_one_side(test_data: Path) -> None:
    bundle = ROOT / "bundles" / "hippocampus_mri"
    split = split_of(bundle)
    number = {case: int(case.rsplit("_", 1)[1]) for case in split["subjects"]}
    pair = {case: (number[case] + 1) // 2 for case in number}  # 2k-1 and 2k are subject k
    for one, other in combinations(number, 2):
        assert (split["subjects"][one] == split["subjects"][other]) == (pair[one] == pair[other])
    side = {case: part for part, cases in split["parts"].items() for case in cases}
    pairs = [(one, other) for one, other in combinations(number, 2) if pair[one] == pair[other]]
    assert len(pairs) > 20
    assert all(side[one] == side[other] for one, other in pairs)
    listed = json.loads((test_data / "hippocampus" / "dataset.json").read_text(encoding="utf-8"))["training"]
    assert {Path(case["image"]).name.removesuffix(".nii.gz") for case in listed} == set(number)


# ----------------------------------------------------------------------------------------------------------------------
# Each config runs, alone, from another folder


@pytest.fixture(scope="module")
def dataset_dir(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny cases under the names of the bundle's split; of all that are listed only those used exist."""
    folder = tmp_path_factory.mktemp(f"data_{bundle.name}")
    labels = len(label_names(bundle))
    if (bundle / "configs" / "split.json").is_file():
        split = split_of(bundle)
        listed = [name for cases in split["parts"].values() for name in cases]
        stored = [name for cases in split["parts"].values() for name in cases[:CASES]]
        return made_bundle.decathlon_folder(folder, listed, stored, labels)
    names = [f"case_{number}" for number in range(2 * CASES)]
    return made_bundle.decathlon_folder(folder, names, names, labels)


def overrides(bundle: Path, name: str, dataset_dir: Path) -> dict[str, Any]:
    wanted = {
        "dataset_dir": str(dataset_dir),
        "device": "cpu",
        "limit_cases": CASES,
        "max_epochs": 1,
        "val_interval": 1,
    }
    config = made_bundle.read_config(bundle, name)
    if "made_volumes" in config:  # the config makes its own dataset; coarse, so that it takes a second
        wanted["resolution_mm"] = 8
        del wanted["dataset_dir"]
    return {key: value for key, value in wanted.items() if key in config}


def workflow_of(bundle: Path, name: str, dataset_dir: Path, **more: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=str(config_path(bundle, name)),
        workflow_type="train" if name == "train" else "infer",
        **{**overrides(bundle, name, dataset_dir), **more},
    )


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_train_runs_as_the_model_zoo_runs_it(bundle: Path, dataset_dir: Path, elsewhere: Path) -> None:
    workflow = workflow_of(bundle, "train", dataset_dir)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.bundle_root == str(bundle)
    workflow.run()
    workflow.finalize()
    trainer = workflow.trainer
    assert (trainer.state.epoch, trainer.state.max_epochs) == (1, 1)
    assert trainer.state.iteration >= 1
    written = {path.name for path in (elsewhere / "runs").rglob("*") if path.is_file()}
    assert {"best.safetensors", "last.safetensors", "mlflow.db"} <= written
    (best,) = (elsewhere / "runs" / bundle.name).rglob("best.safetensors")
    trained = load_bundle(bundle, weights=best).network.state_dict()
    shipped = load_bundle(bundle).network.state_dict()
    assert any(not torch.equal(trained[key], shipped[key]) for key in trained)
    assert {path.name for path in elsewhere.iterdir()} == {"runs"}


def test_evaluate_scores_the_cases_on_their_own_grid(bundle: Path, dataset_dir: Path, elsewhere: Path) -> None:
    workflow = workflow_of(bundle, "evaluate", dataset_dir)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    (table,) = (elsewhere / "runs").rglob("cases.csv")
    predictor = load_bundle(bundle)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    dice = {(row["case"], row["label"]): float(row["dice"]) for row in rows}
    assert len(rows) == len(dice) == CASES * len(predictor.labels)
    for case in {row["case"] for row in rows}:
        found = predictor.predict(dataset_dir / "imagesTr" / f"{case}.nii.gz").label_map
        reference = read_label_map(dataset_dir / "labelsTr" / f"{case}.nii.gz").array
        for label, name in predictor.labels.items():
            both = np.count_nonzero((found == label) & (reference == label))
            total = np.count_nonzero(found == label) + np.count_nonzero(reference == label)
            assert dice[case, name] == pytest.approx(2 * both / total, abs=0.01)
    written = {path.name for path in table.parent.iterdir()}
    assert written >= {"cases.parquet", "summary.json", "bland_altman.png", "boxes.png", "review.html", "worst"}


def test_inference_writes_what_the_predictor_gives(bundle: Path, dataset_dir: Path, elsewhere: Path) -> None:
    workflow = workflow_of(bundle, "inference", dataset_dir)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    written = sorted((elsewhere / "runs").rglob("*.nii.gz"))
    assert len(written) == CASES
    predictor = load_bundle(bundle)
    for path in written:
        image = dataset_dir / "imagesTr" / path.name.replace("_seg", "")
        stored = read_label_map(path)
        np.testing.assert_array_equal(stored.affine_ras, read_volume(image).affine_ras)
        assert np.count_nonzero(stored.array != predictor.predict(image).label_map) <= 2  # rounding


def test_monai_bundle_run_in_a_shell_of_its_own(bundle: Path, dataset_dir: Path, elsewhere: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config_path(bundle, "inference"))]
    command += ["--dataset_dir", str(dataset_dir), "--limit_cases", "1", "--device", "cpu"]
    result = subprocess.run(
        command, cwd=elsewhere, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr
    assert len(list((elsewhere / "runs").rglob("*_seg.nii.gz"))) == 1


def test_a_copied_bundle_uses_its_own_files(bundle: Path, dataset_dir: Path, elsewhere: Path, tmp_path: Path) -> None:
    made = made_bundle.copied_bundle(bundle, tmp_path)
    weights = made / "models" / "model.safetensors"
    weights.unlink()
    workflow = workflow_of(made, "inference", dataset_dir)
    workflow.initialize()
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    messages, cause = [], caught.value.__cause__
    while cause is not None:
        messages.append(str(cause))
        cause = cause.__cause__
    assert any(f"[WEIGHTS_MISSING] {weights}" in message for message in messages)


def test_a_leaking_split_is_refused(elsewhere: Path, tmp_path: Path) -> None:
    bundle = ROOT / "bundles" / "hippocampus_mri"
    split = split_of(bundle)
    dataset_dir = made_bundle.decathlon_folder(tmp_path / "data", list(split["subjects"]), [])
    one, other = next(
        (a, b) for a, b in combinations(split["parts"]["validation"], 2) if split["subjects"][a] == split["subjects"][b]
    )
    split["parts"]["validation"].remove(other)
    split["parts"]["training"].append(other)
    path = tmp_path / "split.json"
    path.write_text(json.dumps(split), encoding="utf-8")
    with pytest.raises(RuntimeError) as caught:  # MONAI's, from ours
        run_config(bundle, "evaluate", {"dataset_dir": str(dataset_dir), "split_file": str(path), "device": "cpu"})
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, DatasetError):
        cause = cause.__cause__
    assert isinstance(cause, DatasetError)
    assert cause.code == "SPLIT_LEAK"
    assert split["subjects"][one] in str(cause)


# ----------------------------------------------------------------------------------------------------------------------
# The shipped weights


@pytest.mark.parametrize("name", SHIPPED_DICE)
def test_shipped_weights_reach_their_dice_on_the_validation_subjects(
    name: str, test_data: Path, elsewhere: Path
) -> None:
    """The acceptance figure of the weights in models/: the mean over labels of the mean over validation cases."""
    folder, least = SHIPPED_DICE[name]
    workflow = run_config(name, "evaluate", {"dataset_dir": str(test_data / folder), "device": "cpu"})
    metric = workflow.parser.get_parsed_content("key_metric#mean_dice")
    assert {row["case"] for row in metric.rows} == set(split_of(ROOT / "bundles" / name)["parts"]["validation"])
    assert all(math.isfinite(row["dice"]) for row in metric.rows)
    assert workflow.evaluator.state.metrics["mean_dice"] >= least, metric.label_means()


def test_yaml_of_the_configs_has_no_aliases(bundle: Path) -> None:
    for name in CONFIGS:
        tokens = yaml.scan(config_path(bundle, name).read_text(encoding="utf-8"))
        assert not [token for token in tokens if isinstance(token, yaml.AliasToken)]
