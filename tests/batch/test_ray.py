"""The same job on two machines of a Ray cluster: the same results, whatever dies on the way."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from accunet_monai.batch import predict_files
from accunet_monai.batch.ray_workers import RayActors
from accunet_monai.errors import WorkerError
from accunet_monai.volumes import read_label_map
from tests.batch.tiny import broken_images, images, tiny_bundle
from tests.conftest import Require

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and processes to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture
def cluster(require: Require, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One machine of a CPU; another can be added."""
    require("ray", importlib.util.find_spec("ray"), "the extra ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield found
    ray.shutdown()
    found.shutdown()


def kill(cluster: Any, machine: Any) -> None:
    """The node and its workers, which would outlive it for a second."""
    raylet = machine.all_processes["raylet"][0].process.pid
    workers = Path(f"/proc/{raylet}/task/{raylet}/children").read_text(encoding="utf-8").split()
    assert workers
    cluster.remove_node(machine, allow_graceful=False)
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker), signal.SIGKILL)


def test_two_machines_one_of_which_dies_give_what_one_process_gives(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second machine is killed when half of the images have been handed out, with one of them on it."""
    bundle = tiny_bundle(tmp_path / "bundle")
    source, quiet = tmp_path / "in", Console(quiet=True)
    good, broken = images(source, 10), broken_images(source, 1)
    machine = cluster.add_node(**NODE)
    hear, send, answer = RayActors.hear, RayActors.send, RayActors._answer
    heard: list[Any] = []
    sent: list[Any] = []

    def both_at_first(self: RayActors, seconds: float) -> Any:
        found = hear(self, seconds)
        while not sent and len(found) < 2:
            found += hear(self, seconds)
        return found

    def then_kill(self: RayActors, worker: Any, task: Any, again: bool) -> None:
        send(self, worker, task, again)
        sent.append(worker)
        if len(sent) == 6:
            kill(cluster, machine)

    def noted(self: RayActors, promise: Any) -> Any:
        heard.append(answer(self, promise))
        return heard[-1]

    monkeypatch.setattr(RayActors, "hear", both_at_first)
    monkeypatch.setattr(RayActors, "send", then_kill)
    monkeypatch.setattr(RayActors, "_answer", noted)
    report = predict_files(source, bundle, tmp_path / "ray", device="cpu", ray=cluster.address, console=quiet)
    alone = predict_files(source, bundle, tmp_path / "alone", device="cpu", console=quiet)
    assert len(set(sent[:2])) == 2
    assert [found.code for found in heard if isinstance(found, WorkerError)] == ["WORKER_DIED"]
    assert list(report.records) == list(alone.written) == good
    # An image whose result was in place before its worker could say so is found done by the next one.
    assert {*report.written, *report.skipped} == set(good)
    assert list(report.failed) == broken
    for path, expected in alone.written.items():
        found = read_label_map(tmp_path / "ray" / expected.name).array
        np.testing.assert_array_equal(found, read_label_map(expected).array)
        assert report.records[path] == alone.records[path]  # with the digests of the label maps
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == names


def test_a_cluster_that_is_not_there(require: Require, tmp_path: Path) -> None:
    require("ray", importlib.util.find_spec("ray"), "the extra ray is not installed")
    images(tmp_path / "in", 1)
    bundle = tiny_bundle(tmp_path / "bundle")
    with pytest.raises(WorkerError) as caught:
        predict_files(tmp_path / "in", bundle, tmp_path / "out", ray="127.0.0.1:1", console=Console(quiet=True))
    assert caught.value.code == "RAY_UNREACHABLE"


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    images(tmp_path / "in", 1)
    bundle = tiny_bundle(tmp_path / "bundle")
    with pytest.raises(WorkerError) as caught:
        predict_files(tmp_path / "in", bundle, tmp_path / "out", ray="auto", console=Console(quiet=True))
    assert caught.value.code == "RAY_MISSING"
    assert "accunet-monai[ray]" in str(caught.value)
