"""Stand-ins in virtual time for what is not the site's own: the queue of DBOS, the network and the PACS."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenlet import getcurrent, greenlet

from accunet_monai.errors import PacsError
from accunet_monai.pacs.jobs import Due
from accunet_monai.pacs.queue import CONCURRENCY, workflow_id
from accunet_monai.pacs.results import Stored
from accunet_monai.pacs.segmenting import Result
from accunet_monai.pacs.settings import BundleRule, Site
from benchmarks.hospital.virtual import Life, Time

START_SECONDS = 0.2
"""Between queueing and starting an attempt: DBOS looks so often."""


@dataclass(eq=False)
class Attempt:
    """A workflow: which steps of it are done is kept."""

    job: Due
    executor: str | None = None
    over: bool = False
    results: list[Any] = field(default_factory=list)


class Queue:
    """What DBOS keeps for all workers: attempts that wait by priority, and who is at which."""

    def __init__(self) -> None:
        self.attempts: dict[str, Attempt] = {}
        self.running: dict[str, set[str]] = {}
        self._waiting: list[tuple[int, int, str]] = []
        self._order = itertools.count()

    def put(self, name: str) -> None:
        """Let an attempt wait."""
        self.attempts[name].executor = None
        heapq.heappush(self._waiting, (-self.attempts[name].job.priority, next(self._order), name))

    def next(self) -> str | None:
        """The most urgent that waits."""
        while self._waiting:
            name = heapq.heappop(self._waiting)[2]
            attempt = self.attempts.get(name)
            if attempt and attempt.executor is None and not attempt.over:
                return name
        return None


class WorkerQueue:
    """A worker's side of the queue, with the methods of :class:`accunet_monai.pacs.queue.JobQueue`."""

    def __init__(self, time: Time, shared: Queue, life: Life, executor: str, ended: Callable[[], object]) -> None:
        self.time, self.shared, self.life, self.executor, self.ended = time, shared, life, executor, ended
        self.workflow: Callable[[str, int], str | None]
        shared.running[executor] = set()

    def enqueue(self, job: Due) -> None:
        """As the queue of DBOS: once."""
        name = workflow_id(job.job_id, job.attempt)
        if name not in self.shared.attempts:
            self.shared.attempts[name] = Attempt(job)
            self.shared.put(name)

    def is_over(self, job_id: str, attempt: int) -> bool | None:
        """Whether it ended, ``None`` when it is not known."""
        found = self.shared.attempts.get(workflow_id(job_id, attempt))
        return None if found is None else found.over

    def abandon(self, job_id: str, attempt: int) -> None:
        """Keep no further step."""
        self.shared.attempts[workflow_id(job_id, attempt)].over = True

    def executors(self) -> set[str]:
        """The workers that are at something."""
        return {executor for executor, names in self.shared.running.items() if names}

    def adopt(self, dead: Iterable[str]) -> int:
        """What dead workers were at waits again."""
        names = [name for executor in dead for name in self.shared.running.pop(executor)]
        for name in names:
            self.shared.put(name)
        return len(names)

    def start(self) -> None:
        """Begin as many attempts as the worker may run at a time."""
        mine = self.shared.running.get(self.executor)
        while mine is not None and len(mine) < CONCURRENCY and (name := self.shared.next()) is not None:
            self.shared.attempts[name].executor = self.executor
            mine.add(name)
            self.time.begin(self.life, lambda name=name: self._run(name))  # type: ignore[misc]

    def _run(self, name: str) -> None:
        self.time.sleep(START_SECONDS)
        attempt, run = self.shared.attempts[name], getcurrent()
        run.attempt, run.position, run.executor = attempt, 0, self.executor  # type: ignore[attr-defined]
        try:
            self.workflow(attempt.job.job_id, attempt.job.attempt)
            attempt.over = True
        except TakenError:
            pass
        self.shared.running.get(self.executor, set()).discard(name)
        self.ended()


class TakenError(BaseException):
    """The attempt is another worker's, or abandoned: its steps are not for this one to record."""


class Dbos:
    """Stands in for ``DBOS`` of :mod:`accunet_monai.pacs.queue`: a step that is done is not done again."""

    @staticmethod
    def run_step(options: object, step: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a step, now or from before."""
        run: Any = getcurrent()
        attempt, position = run.attempt, run.position
        run.position += 1
        if position == len(attempt.results):
            result = step(*arguments)
            if attempt.over or attempt.executor != run.executor:
                raise TakenError
            attempt.results.append(result)
        return attempt.results[position]


@dataclass(frozen=True)
class Duration:
    """Seconds that vary as times of work do: log-normal by median and spread."""

    median: float
    spread: float = 0.4

    def draw(self, rng: random.Random) -> float:
        """Another each time."""
        return self.median * math.exp(rng.gauss(0.0, self.spread))

    def of(self, name: str) -> float:
        """Always the same for the same name."""
        return self.draw(random.Random(name))


class Networks:
    """The bundles in memory of a worker: reading and writing side by side, the network one volume at a time."""

    def __init__(self, time: Time, rules: dict[str, BundleRule], network: Duration, around: Duration) -> None:
        self.time, self.rules, self.network, self.around = time, rules, network, around
        self.line: deque[greenlet] = deque()

    def rule(self, bundle: str) -> BundleRule:
        """As of :class:`accunet_monai.pacs.segmenting.Models`."""
        return self.rules[bundle]

    def get(self, bundle: str, digest: str) -> Networks:
        """Likewise."""
        return self

    def store_result(self, revision_id: str) -> Result:
        """As :func:`accunet_monai.pacs.segmenting.store_result`: the same SEG for the same revision."""
        self.time.sleep(self.around.of(revision_id))
        with self.time.turn(self.line):
            self.time.sleep(self.network.of(revision_id))
        digest = hashlib.sha256(revision_id.encode()).hexdigest()
        return Result(Stored(f"results/{digest}.dcm", digest, f"2.25.{int(digest[:30], 16)}"), None)


class Archive:
    """A PACS that is away at times, refuses a few objects and loses some that it said it has stored."""

    TIMEOUT = 5.0

    def __init__(self, time: Time, rng: random.Random, away: list[tuple[float, float]], answer: Duration) -> None:
        self.time, self.rng, self.away, self.answer = time, rng, away, answer
        self.objects: Counter[str] = Counter()

    def send(self, file: Path) -> None:
        """As of :class:`accunet_monai.pacs.delivering.Channel`."""
        self._reach()
        chance = self.rng.random()
        if chance < 0.002:
            raise PacsError("SEND_REFUSED", "it was refused.")
        if chance > 0.0005 + 0.002:
            self.objects[file.name] += 1

    def has(self, file: Path) -> bool:
        """Likewise."""
        self._reach()
        return self.objects[file.name] > 0

    def _reach(self) -> None:
        if any(start <= self.time.now < end for start, end in self.away):
            self.time.sleep(self.TIMEOUT)
            raise PacsError("PACS_UNREACHABLE", "it is away.")
        self.time.sleep(self.answer.draw(self.rng))


def stored_file(site: Site, file: str | None, sha256: str) -> Path:
    """As :func:`accunet_monai.pacs.results.stored_file`, without a file."""
    return Path(str(file))
