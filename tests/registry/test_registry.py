"""The model registry in SQLite: versions, the gate, bundles pulled, and the model that MLflow loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from safetensors import safe_open
from typer.testing import CliRunner

from accunet_monai.bundle import load_bundle, read_manifest, verify_bundle
from accunet_monai.cli import app
from accunet_monai.errors import BundleError
from accunet_monai.evaluation import measure_case, write_rows
from accunet_monai.registry import list_versions, promote, pull, register_run
from accunet_monai.training.tracking import TrackingError
from accunet_monai.training.tracking.model import example_input
from accunet_monai.training.tracking.runs import connect
from accunet_monai.volumes import Volume
from tests.pacs.small import site_file
from tests.registry.made_runs import DIGEST, logged_run
from tests.training.tracked import LABELS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*[tT]ype hint:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
]


@pytest.fixture(scope="module", autouse=True)
def no_tracking_server() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def client(store: Path, no_tracking_server: None) -> MlflowClient:
    return connect(store)


@pytest.fixture(scope="module")
def runs(client: MlflowClient, store: Path) -> dict[str, str]:
    """What a run finds → its id; versions 1, 2, 3 of "organ" are "fair", "good", "bad"."""
    found = {name: logged_run(client, store, share) for name, share in (("fair", 0.7), ("good", 0.9), ("bad", 0.4))}
    for version, name in enumerate(found, 1):
        assert register_run(found[name], "organ", store) == str(version)
    return found


def test_the_gate_lets_nothing_worse_pass(runs: dict[str, str], client: MlflowClient, store: Path) -> None:
    assert promote("organ", "1", folder=store).said == "the first champion"
    gate = promote("organ", "2", folder=store)
    assert (gate.version, gate.before) == ("2", "1")
    assert gate.comparison is not None
    assert gate.comparison.verdict == "better"
    with pytest.raises(TrackingError, match="8 worse") as caught:
        promote("organ", "3", folder=store)
    assert caught.value.code == "REGISTRY_WORSE"
    assert str(client.get_model_version_by_alias("organ", "champion").version) == "2"
    assert promote("organ", "3", alias="candidate", folder=store).before is None
    newest, second, _ = list_versions(store)
    assert (newest.aliases, second.aliases, second.dice) == (("candidate",), ("champion",), 0.9)
    assert second.gate.startswith("champion: mean Dice 0.8")
    assert promote("organ", "1", folder=store, compared=False).said == "not compared with version 2"
    assert promote("organ", "2", folder=store).comparison is not None


def test_other_cases_are_not_comparable(runs: dict[str, str], client: MlflowClient, store: Path) -> None:
    version = register_run(logged_run(client, store, 0.95, subjects=9), "organ", store)
    promote("organ", "1", alias="steady", folder=store)
    with pytest.raises(TrackingError, match="COMPARE_CASES") as caught:
        promote("organ", version, alias="steady", folder=store)
    assert caught.value.code == "REGISTRY_NOT_COMPARABLE"


def test_too_few_subjects_or_no_interval_decide_nothing(client: MlflowClient, store: Path) -> None:
    """Five subjects of whom each is worse by 0.75; and six of whom nothing is known."""
    small = [logged_run(client, store, share, subjects=5) for share in (0.9, 0.15)]
    empty = [logged_run(client, store, 0.9, subjects=0) for _ in range(2)]
    nowhere = np.zeros((4, 4, 4), np.uint8)
    rows = [row for n in range(6) for row in measure_case(nowhere, nowhere, (1, 1, 1), LABELS, case=f"c{n}")]
    for run_id in empty:
        client.log_artifact(run_id, str(write_rows(rows, store / "empty" / "cases.csv")))
    for name, (champion, candidate) in {"small": small, "empty": empty}.items():
        for version, run_id in enumerate((champion, candidate), 1):
            assert register_run(run_id, name, store) == str(version)
        promote(name, "1", folder=store)
        with pytest.raises(TrackingError, match="no verdict is possible") as caught:
            promote(name, "2", folder=store)
        assert caught.value.code == "REGISTRY_NOT_COMPARABLE"
        assert "--not-compared" in str(caught.value.hint)
        assert str(client.get_model_version_by_alias(name, "champion").version) == "1"
        assert promote(name, "2", folder=store, compared=False).version == "2"


def test_a_pulled_bundle_is_verified_and_says_where_it_is_from(
    runs: dict[str, str], store: Path, tmp_path: Path
) -> None:
    folder = pull("models:/organ/2", tmp_path / "organ", store)
    verify_bundle(folder, strict=True)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.mlflow_run, manifest.dataset_digest) == (runs["good"], DIGEST)
    weights = folder / "models" / "model.safetensors"
    with safe_open(weights, "numpy") as file:
        assert file.metadata()["mlflow_run"] == runs["good"]
        assert file.metadata()["dataset_digest"] == DIGEST
    assert app(["bundle", "verify", str(folder)], standalone_mode=False) in (None, 0)
    weights.write_bytes(weights.read_bytes()[:-4] + b"0000")
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert caught.value.code == "BUNDLE_DIGEST"
    with pytest.raises(TrackingError) as there:
        pull("models:/organ/2", folder, store)
    assert there.value.code == "REGISTRY_TARGET"
    assert [path.name for path in tmp_path.iterdir()] == ["organ"]


def test_an_alias_leads_to_the_sites_that_run_it(runs: dict[str, str], store: Path, tmp_path: Path) -> None:
    """The link is the run that the pulled bundle's manifest names; a PACS host is told that alone."""
    folder = pull("models:/organ/2", tmp_path / "organ", store)
    site = site_file(tmp_path / "site", bundle=folder)

    def traced(*words: str) -> Any:
        found = CliRunner().invoke(app, ["pacs", "trace", str(site), *words, "--json"])
        return json.loads(found.stdout) if found.exit_code == 0 else found.stderr

    (asked,) = traced("models:/organ/2", "--runs-dir", str(store))
    assert (asked["bundle"], asked["in_use"], asked["mlflow_run"]) == ("organ", "shadow", runs["good"])
    assert traced("--run", runs["good"]) == [asked]
    assert "TRACE_UNKNOWN" in traced("--run", runs["fair"])


@pytest.mark.parametrize(
    ("uri", "code"),
    [("organ@champion", "REGISTRY_URI"), ("models:/organ@nobody", "REGISTRY_NO_MODEL"),
     ("models:/organ/99", "REGISTRY_NO_MODEL"), ("models:/nothing/1", "REGISTRY_NO_MODEL")],
)  # fmt: skip
def test_what_is_not_there_is_told(runs: dict[str, str], store: Path, tmp_path: Path, uri: str, code: str) -> None:
    with pytest.raises(TrackingError) as caught:
        pull(uri, tmp_path / "x", store)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_bundle_is_refused(client: MlflowClient, runs: dict[str, str], store: Path) -> None:
    experiment = client.get_run(runs["fair"]).info.experiment_id
    run_id = client.create_run(experiment).info.run_id
    with pytest.raises(TrackingError) as caught:
        register_run(run_id, "organ", store)
    assert caught.value.code == "REGISTRY_NO_BUNDLE"


def test_mlflow_loads_a_model_that_segments_volumes_of_any_size(
    runs: dict[str, str], client: MlflowClient, store: Path
) -> None:
    source = client.get_model_version_download_uri("organ", "2")
    model = mlflow.pyfunc.load_model(source)
    predictor = load_bundle(pull("models:/organ/2", store / "beside", store))
    signature = model.metadata.signature
    assert [spec.shape for spec in signature.inputs.inputs] == [(-1, -1, -1), (4, 4)]
    assert signature.outputs.inputs[0].shape == (-1, -1, -1)
    for shape in ((14, 18, 6), (21, 9, 11)):
        inputs = example_input(shape)
        inputs["affine"] = np.diag([2.0, -1.0, 1.5, 1.0])
        expected = predictor.predict(Volume(inputs["image"], inputs["affine"])).label_map
        assert np.array_equal(model.predict(inputs), expected)
        assert expected.any()
    files = {path.suffix for path in Path(source.removeprefix("file://")).rglob("*") if path.is_file()}
    assert not files & {".pkl", ".pickle", ".pt", ".pth"}


def test_the_commands(runs: dict[str, str], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--runs-dir", str(store)]
    for words in (
        ["register", runs["bad"], "other"],
        ["promote", "other", "1"],
        ["list"],
        ["pull", "models:/other@champion", str(tmp_path / "pulled")],
        ["tidy"],
    ):
        assert app(["registry", *words, *place], standalone_mode=False) in (None, 0)
    said = capsys.readouterr().out
    assert "registered: version 1 of other" in said
    assert "models:/other@champion is version 1: the first champion" in said
    assert runs["bad"] in said
    assert (tmp_path / "pulled" / "manifest.json").is_file()
