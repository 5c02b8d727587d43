"""A real MLflow server over HTTP with basic authentication and its own artifact store, and a browser before it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from accunet_monai.bundle import load_bundle, verify_bundle
from accunet_monai.registry import promote, pull
from accunet_monai.training.run_file import read_run_file
from accunet_monai.training.tracking import TrackingError
from accunet_monai.training.tracking.model import example_input
from accunet_monai.training.tracking.runs import connect, open_experiment
from accunet_monai.volumes import Volume
from tests.chromium import Page
from tests.conftest import Require
from tests.training.tracked import Training, nifti_cases, volume_bundle

USER, PASSWORD = "admin", "a password of the tests"
START_SECONDS = 120


@dataclass
class Server:
    """Where it answers, where it keeps artifacts, and a training that was logged to it."""

    uri: str
    artifacts: Path
    run_id: str
    folder: Path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answering(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(log.read_text(errors="replace")[-3000:])


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, require: Require) -> Iterator[Server]:
    """One server for all tests here, with one training."""
    pytest.importorskip("psutil")
    try:
        import flask_wtf  # noqa: F401
    except ImportError:
        require("mlflow[auth]", False, "Flask-WTF is not installed")
    folder = tmp_path_factory.mktemp("server")
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\nadmin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'm.db'}"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "made"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log, cwd=folder)
    uri = f"http://127.0.0.1:{port}"
    try:
        answering(process, f"{uri}/health", folder / "log")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            patch.setenv("MLFLOW_TRACKING_USERNAME", USER)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            arguments = {"register": "organ", "run_name": "a made training", "pictures": 1, "worst_pictures": 2}
            bundle, cases = volume_bundle(folder), nifti_cases(folder / "data", 3)
            run_id = Training(bundle, cases, folder / "out", epochs=2, tracked=arguments).run()
            yield Server(uri, folder / "artifacts", run_id, folder)
    finally:
        stopped(process)


def test_a_training_is_logged_over_http(server: Server) -> None:
    client = MlflowClient()
    run = client.get_run(server.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert [entry.step for entry in client.get_metric_history(server.run_id, "val_mean_dice")] == [1, 2]
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    stored = {path.name for path in server.artifacts.rglob("*") if path.is_file()}
    assert {"review.html", "cases.csv", "model.safetensors", "bland_altman.png"} <= stored
    assert PASSWORD not in json.dumps(read_run_file(server.folder / "out"))


def test_a_wrong_password_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        open_experiment(connect(), "made", server.folder)
    assert caught.value.code == "TRACKING_SERVER"


def test_a_bundle_is_pulled_from_the_server(server: Server, tmp_path: Path) -> None:
    promote("organ", "1")
    bundle = pull("models:/organ@champion", tmp_path / "organ")
    verify_bundle(bundle, strict=True)
    best = (server.folder / "out" / "best.safetensors").read_bytes()
    assert (bundle / "models" / "model.safetensors").read_bytes() == best


def test_mlflow_serves_the_champion_for_volumes_of_two_sizes(server: Server, tmp_path: Path) -> None:
    promote("organ", "1")
    predictor = load_bundle(pull("models:/organ@champion", tmp_path / "organ"))
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/organ@champion",
        "--env-manager",
        "local",
    ]
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[2]), str(Path(sys.executable).parent)])
    variables = {"PYTHONPATH": paths, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env={**os.environ, **variables}, stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip
    try:
        answering(process, f"http://127.0.0.1:{port}/ping", tmp_path / "log")
        for shape in ((12, 16, 14), (9, 20, 7)):
            inputs = example_input(shape)
            body = json.dumps({"inputs": {key: value.tolist() for key, value in inputs.items()}}).encode()
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=120) as answer:
                found = np.array(json.loads(answer.read())["predictions"])
            expected = predictor.predict(Volume(inputs["image"], inputs["affine"])).label_map
            assert found.shape == shape
            assert np.array_equal(found, expected)
    finally:
        stopped(process)


# ----------------------------------------------------------------------------------------------------------------------
# What a reviewer sees


@pytest.fixture(scope="module")
def chromium(require: Require) -> str:
    command = shutil.which("chromium") or shutil.which("google-chrome")
    require("chromium", command, "no chromium command")
    return str(command)


@contextlib.contextmanager
def opened(server: Server, chromium: str, place: str, condition: str) -> Iterator[Page]:
    """A page of the server's, logged in, once a JavaScript condition holds."""
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    experiment = MlflowClient().get_run(server.run_id).info.experiment_id
    address = f"{server.uri}/#/experiments/{experiment}/runs/{server.run_id}{place}?workflowType=machine_learning"
    with Page(chromium, "data:text/html,empty", size=(1400, 1000)) as page:
        page.call("Network.enable")
        page.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {login}"})
        page.call("Page.navigate", url=address)
        page.wait_for(f"document.body !== null && ({condition})")
        yield page


def test_the_runs_page_shows_name_metrics_data_and_model(server: Server, chromium: str) -> None:
    wanted = ["val_mean_dice", "a made training", "Finished", "train_loss", "organ", "training (", "Worst cases"]
    everything = f"{json.dumps(wanted)}.every(words => document.body.innerText.includes(words))"
    with opened(server, chromium, "", everything):  # the page fills itself bit by bit
        pass


def test_pictures_have_a_slider_and_are_there_at_once(server: Server, chromium: str) -> None:
    with opened(server, chromium, "/model-metrics", "document.querySelector('[role=slider]') !== null") as page:
        assert "worst_01" in page.value("document.body.innerText")
        page.value("document.querySelector('[role=slider]').scrollIntoView({block: 'center'})")
        page.wait_for("[...document.images].some(i => i.naturalWidth > 200 && !i.src.startsWith('data:'))")
        ends = ("min", "max", "now")
        slider = page.value(
            f"{list(ends)}.map(end => document.querySelector('[role=slider]').getAttribute('aria-value' + end))"
        )
    assert slider == ["0", "2", "0"]


def test_the_review_page_opens_among_the_artifacts(server: Server, chromium: str) -> None:
    frame = "document.querySelector('iframe')"
    with opened(server, chromium, "/artifacts/review.html", f"{frame} !== null") as page:
        page.wait_for(f"({frame}.srcdoc || {frame}.src).length > 10")
        source: str = page.value(f"(async () => {frame}.srcdoc || await (await fetch({frame}.src)).text())()")
    assert source.count("<article") == 3
    assert "The worst case comes first" in source
