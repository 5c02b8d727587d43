"""One run's sources shared among workers, each with a network of its own; one that dies costs a repetition at most."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from accunet_monai.batch.records import Record
from accunet_monai.batch.sources import Source
from accunet_monai.batch.stages import PredictOptions, Stages, as_error, open_stages
from accunet_monai.errors import AccunetError, WorkerError
from accunet_monai.volumes import volume_stem

ATTEMPTS = 2
"""A source whose worker dies is given to one other: it may have been the other's memory, or the machine's end."""

START_SECONDS = 600.0
"""So long a run waits for its first worker: a cluster may have to find a machine for it."""

Task = Sequence[Source]
Outcome = tuple[Record, bool] | AccunetError
Answer = list[Outcome] | AccunetError
"""One outcome for each source of a task, nothing from a worker that is ready, or why there is no worker any more."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Job:
    """What a worker has to know to do as a single process would.

    Args:
        bundle: as of :func:`~accunet_monai.batch.predict_files`.
        weights: likewise.
        device: likewise.
        options: likewise.
        folder: for the results.
        model_sha256: digest of the model that the run was started with.
        threads: of torch in each worker.
        directory: what relative paths start from.
        sign: a file of the run that a worker on another machine must see.
    """

    bundle: PathLike | Sequence[PathLike]
    weights: PathLike | Sequence[PathLike] | None
    device: str | None
    options: PredictOptions
    folder: Path
    model_sha256: str
    threads: int = 1
    directory: str = "."
    sign: Path | None = None


class Worker:
    """Works on tasks, wherever it is.

    Args:
        job: of the run.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stages: Stages

    def open(self) -> Answer:
        """Load the network; nothing when it went well, else why it did not."""
        import torch

        job = self._job
        with suppress(OSError):  # without it, absolute paths are found all the same
            os.chdir(job.directory)
        try:
            if job.sign is not None and not job.sign.is_file():
                raise FileNotFoundError(f"{job.sign}: the folder for the results is not that of the run")
            torch.set_num_threads(job.threads)
            self._stages = open_stages(job.bundle, job.weights, job.device, job.folder, job.options)
        except AccunetError as error:
            return error
        except OSError as error:
            hint = "Images, bundle and results must lie on a file system that all machines see at the same place."
            return WorkerError("WORKER_FILES", str(error), hint=hint)
        if self._stages.predictor.digest != job.model_sha256:
            message = "a worker has another model: other weights, another config or another version of this package."
            return WorkerError("WORKER_MODEL", message, path=self._stages.predictor.bundle)
        return []

    def segment(self, task: Task, again: bool) -> list[Outcome]:
        """The outcomes of a task's sources; of one that is done ``again`` the first worker's results are taken."""
        if again:
            self._stages.read_records()
        return [self._outcome(source) for source in task]

    def _outcome(self, source: Source) -> Outcome:
        try:
            return self._stages.write(self._stages.compute(self._stages.read(source)))
        except Exception as error:
            return as_error(source, error)


class Crew(Protocol):
    """Workers: how they are started, given something to do, and heard of.

    Attributes:
        size: how many there are at most.
    """

    size: int

    def start(self) -> Hashable:
        """Start a worker, which will be heard of when it is ready."""

    def send(self, worker: Any, task: Task, again: bool) -> None:
        """Give a worker that is ready something to do."""

    def hear(self, seconds: float) -> list[tuple[Hashable, Answer]]:
        """Wait for at least one worker's answer, or until the time is over."""

    def end(self) -> None:
        """End all workers."""


def distribute(sources: Sequence[Source], crew: Crew) -> Iterator[tuple[Source, Outcome]]:
    """Have all sources done by a crew, which is ended thereafter.

    A task whose worker dies is done once more by another; when that dies, too, it has failed with ``WORKER_DIED``.
    Workers that die are replaced, save those that die before they are ready.

    Args:
        sources: what to work on.
        crew: who works.

    Yields:
        (source, outcome), as they are finished.

    Raises:
        WorkerError: ``WORKER_START`` when there is no worker, or what hindered the last one.
    """
    shift = _Shift(sources, crew)
    try:
        while shift.goes_on:
            shift.hand_out()
            for worker, answer in shift.hear():
                yield from shift.settle(worker, answer)
    finally:
        crew.end()


class _Shift:
    """Who of a crew does what."""

    def __init__(self, sources: Sequence[Source], crew: Crew) -> None:
        self._crew = crew
        self._size = crew.size
        self._waiting = deque((task, 1) for task in _tasks(sources))
        self._starting: set[Hashable] = set()
        self._ready: set[Hashable] = set()
        self._busy: dict[Hashable, tuple[Task, int]] = {}
        self._failure: AccunetError = WorkerError("WORKER_START", "no worker has started.")

    @property
    def goes_on(self) -> bool:
        return bool(self._waiting or self._busy)

    def hand_out(self) -> None:
        """Tasks to workers that are ready, and as many new workers as there is something to do for."""
        while self._ready and self._waiting:
            worker = self._ready.pop()
            self._busy[worker] = task, attempt = self._waiting.popleft()
            self._crew.send(worker, task, attempt > 1)
        while len(self._starting) < min(len(self._waiting), self._size - len(self._busy)):
            self._starting.add(self._crew.start())

    def hear(self) -> list[tuple[Hashable, Answer]]:
        """Waits for a task that is being done as long as it takes, for a first worker not for ever."""
        heard = []
        if self._busy or self._starting:
            heard = self._crew.hear(START_SECONDS)
        if not heard and not self._busy:
            raise self._failure
        return heard

    def settle(self, worker: Hashable, answer: Answer) -> Iterator[tuple[Source, Outcome]]:
        """The outcomes of a task, if that is what the answer comes to."""
        task, attempt = self._busy.pop(worker, ((), 0))
        if not isinstance(answer, AccunetError):
            self._ready.add(worker)
            yield from zip(task, answer, strict=True)
        elif worker in self._starting:
            self._size, self._failure = self._size - 1, answer
        elif task and attempt < ATTEMPTS:
            self._waiting.append((task, attempt + 1))
        else:
            yield from ((source, _died(source, answer)) for source in task)
        self._starting.discard(worker)
        if isinstance(answer, AccunetError):
            self._ready.discard(worker)


def _tasks(sources: Sequence[Source]) -> list[Task]:
    """Each source by itself, save those whose results would have one name: one worker sees which of them come first."""
    tasks: dict[Hashable, list[Source]] = {}
    for source in sources:
        if isinstance(source, Path):
            name: Hashable = volume_stem(source)
        else:
            name = source.series_uid, tuple(sorted(source.split.items()))
        tasks.setdefault(name, []).append(source)
    return list(tasks.values())


class Processes:
    """Workers as processes of this machine.

    Args:
        job: of the run. Its workers share torch's threads, and all GPUs unless it names one.
        size: how many.
    """

    def __init__(self, job: Job, size: int) -> None:
        import torch

        self.size = size
        self._job = replace(job, threads=max(1, torch.get_num_threads() // max(1, size)))
        self._gpus = torch.cuda.device_count() if job.device in (None, "cuda") else 0
        self._started = 0
        self._processes: dict[Connection, BaseProcess] = {}

    def start(self) -> Connection:
        """Start a process; a fork would inherit torch's locks but not its threads."""
        job = self._job
        if self._gpus:
            job = replace(job, device=f"cuda:{self._started % self._gpus}")
        self._started += 1
        context = multiprocessing.get_context("spawn")
        channel, end = context.Pipe()
        process = context.Process(target=_serve, args=(job, end), daemon=True)
        process.start()
        end.close()
        self._processes[channel] = process
        return channel

    def send(self, worker: Connection, task: Task, again: bool) -> None:
        """Give a process something to do; if it has died, that is heard next."""
        with suppress(OSError):
            worker.send((task, again))

    def hear(self, seconds: float) -> list[tuple[Hashable, Answer]]:
        """Wait for processes that have answered or died."""
        heard = [channel for channel in wait(list(self._processes), seconds) if isinstance(channel, Connection)]
        return [(channel, self._answer(channel)) for channel in heard]

    def end(self) -> None:
        """Kill all processes: none has anything to do, or nobody waits for it."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()
        self._processes.clear()

    def _answer(self, channel: Connection) -> Answer:
        answer: Answer
        try:
            answer = channel.recv()
        except (EOFError, OSError):
            answer = WorkerError("WORKER_DIED", f"its process ended: {_end_of(self._processes[channel])}.")
        if isinstance(answer, AccunetError):
            process = self._processes.pop(channel)
            process.kill()
            process.join()
        return answer


def _serve(job: Job, channel: Connection) -> None:
    """The process of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends its workers itself
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    worker = Worker(job)
    channel.send(worker.open())
    while True:
        channel.send(worker.segment(*channel.recv()))


def _end_with_the_run() -> None:
    """A worker must not go on writing while the next run writes the same files."""
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()
        os._exit(1)


def _end_of(process: BaseProcess) -> str:
    """How it ended; it has closed its channel, so it ends now."""
    process.join(10)
    code = process.exitcode
    if code is None:
        return "it closed its channel"
    return f"exit {code}" if code >= 0 else signal.Signals(-code).name


def _died(source: Source, answer: AccunetError) -> AccunetError:
    return WorkerError(
        answer.code,
        f"{ATTEMPTS} workers died of it, or with it; the last one: {answer.message}",
        path=source if isinstance(source, Path) else None,
        hint="If memory ran out, fewer workers may do.",
    )
