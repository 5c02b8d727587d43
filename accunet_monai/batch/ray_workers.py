"""Workers on the machines of a Ray cluster; the only module that imports Ray, and that only when it is asked for."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accunet_monai.batch.workers import Answer, Job, Task, Worker
from accunet_monai.errors import WorkerError

CONNECT_SECONDS = 10.0
"""A cluster inside one network answers in milliseconds."""


class RayActors:
    """Workers as actors of a Ray cluster, with a CPU or a GPU each and more.

    Ray repeats nothing by itself here: an actor that dies, with its machine or alone, is heard of, and its task is
    given to another. Actors for which there is no room wait, while the others work.

    Args:
        job: of the run.
        size: how many; by default one a GPU where the cluster has any and the job may use them, or else one a machine.
        address: of the cluster, as Ray takes it: ``auto`` or ``HOST:PORT``; ``local`` starts one on this machine.

    Raises:
        WorkerError: ``RAY_MISSING`` or ``RAY_UNREACHABLE``.
    """

    def __init__(self, job: Job, size: int | None, address: str) -> None:
        self._ray = _connected(address)
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines) if job.device != "cpu" else 0
        cpus = [int(machine["CPU"]) for machine in machines] or [1]
        self.size = size or gpus or len(machines) or 1
        threads = max(1, min(*cpus, sum(cpus) // self.size))
        job.folder.mkdir(parents=True, exist_ok=True)
        self._sign = tempfile.NamedTemporaryFile(dir=job.folder, prefix=".run_")  # noqa: SIM115 - closed by end()
        sign = Path(self._sign.name).resolve()
        self._job = replace(job, threads=threads, folder=sign.parent, directory=os.fspath(Path.cwd()), sign=sign)
        self._actor = self._ray.remote(
            num_cpus=threads, num_gpus=1 if gpus else 0, max_restarts=0, scheduling_strategy="SPREAD"
        )(Worker)
        self._promises: dict[Any, Any] = {}

    def start(self) -> Any:
        """Ask for an actor, wherever there is room."""
        actor = self._actor.remote(self._job)
        self._promises[actor.open.remote()] = actor
        return actor

    def send(self, worker: Any, task: Task, again: bool) -> None:
        """Give an actor something to do."""
        self._promises[worker.segment.remote(task, again)] = worker

    def hear(self, seconds: float) -> list[tuple[Hashable, Answer]]:
        """Wait for an actor that has answered, or whose machine is gone."""
        kept, _ = self._ray.wait(list(self._promises), timeout=seconds)
        return [(self._promises[promise], self._answer(promise)) for promise in kept]

    def end(self) -> None:
        """Leave the cluster, which ends the actors."""
        self._promises.clear()
        self._ray.shutdown()
        self._sign.close()

    def _answer(self, promise: Any) -> Answer:
        actor = self._promises.pop(promise)
        try:
            answer: Answer = self._ray.get(promise)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)  # were it only out of reach, it would write what another does again
            said = next(iter(str(error).splitlines()), type(error).__name__)
            answer = WorkerError("WORKER_DIED", f"{type(error).__name__}: {said}")
        return answer


def _connected(address: str) -> Any:
    """The module ``ray``, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody elsewhere hears of a run
    try:
        import ray
    except ImportError as error:
        hint = "pip install 'accunet-monai[ray]'"
        raise WorkerError("RAY_MISSING", "--ray needs the package ray.", hint=hint) from error
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself asks for minutes whether there is anybody
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        message = f"no Ray cluster answers at {address!r}: {error}"
        raise WorkerError("RAY_UNREACHABLE", message, hint="Start one with `ray start --head`.") from error
    return ray
