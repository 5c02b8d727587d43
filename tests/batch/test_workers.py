"""Several processes on one machine: what one gives, in its order; a worker's death costs a repetition at most."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from accunet_monai.batch import BatchReport, PredictOptions, predict_files
from accunet_monai.batch.workers import Answer, Job, Processes, Task, Worker, distribute
from accunet_monai.bundle import load_bundle
from accunet_monai.errors import WorkerError
from tests.batch.tiny import broken_images, images, tiny_bundle

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def run(source: Path, bundle: Path, output: Path, **options: Any) -> BatchReport:
    return predict_files(source, bundle, output, device="cpu", console=Console(quiet=True), **options)


def test_two_processes_give_what_one_gives(bundle: Path, tmp_path: Path) -> None:
    """Also where two sources would have results of one name, and with summaries over all of them."""
    good, broken = images(tmp_path / "in", 5), broken_images(tmp_path / "in", 1)
    twin = tmp_path / "in" / "case_02.nii"
    twin.write_bytes(gzip.decompress(good[2].read_bytes()))
    wanted = {"measures": True, "review": True}
    one = run(tmp_path / "in", bundle, tmp_path / "one", **wanted)
    two = run(tmp_path / "in", bundle, tmp_path / "two", workers=2, **wanted)
    assert list(two.written) == list(one.written)
    assert two.records == one.records
    assert {path: str(error) for path, error in two.failed.items()} == {
        path: str(error) for path, error in one.failed.items()
    }
    assert {error.code for error in two.failed.values()} == {"NIFTI_UNREADABLE", "OUTPUT_TAKEN"}
    assert set(two.failed) > set(broken)
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert contents[0] == contents[1]
    again = run(tmp_path / "in", bundle, tmp_path / "two", workers=2, **wanted)
    assert again.skipped == two.written
    assert not again.written


class KilledAtOnce(Processes):
    """Kills each process that is given a source of a certain name, as the system does when memory runs out."""

    def __init__(self, job: Job, size: int, victims: str) -> None:
        super().__init__(job, size)
        self.victims = victims
        self.killed = 0
        self.started = 0

    def start(self) -> Any:
        self.started += 1
        return super().start()

    def send(self, worker: Any, task: Task, again: bool) -> None:
        if any(self.victims in str(source) for source in task):
            self.killed += 1
            process = self._processes[worker]
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        super().send(worker, task, again)


def job_of(bundle: Path, output: Path) -> Job:
    return Job(bundle, None, "cpu", PredictOptions(), output, load_bundle(bundle).digest)


def test_what_kills_its_workers_has_failed_and_the_rest_is_done(bundle: Path, tmp_path: Path) -> None:
    sources = images(tmp_path / "in", 4)
    crew = KilledAtOnce(job_of(bundle, tmp_path / "out"), 2, victims="case_01")
    outcomes = dict(distribute(sources, crew))
    failed = outcomes.pop(sources[1])
    assert isinstance(failed, WorkerError)
    assert (failed.code, failed.path) == ("WORKER_DIED", str(sources[1]))
    assert "SIGKILL" in str(failed)
    assert crew.killed == 2
    assert crew.started <= 4
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {
        "case_00_seg.nii.gz",
        "case_02_seg.nii.gz",
        "case_03_seg.nii.gz",
    }
    assert len(outcomes) == 3
    assert not crew._processes


def test_a_worker_that_is_killed_once_costs_nothing(bundle: Path, tmp_path: Path) -> None:
    sources = images(tmp_path / "in", 3)
    crew = Processes(job_of(bundle, tmp_path / "out"), 1)
    outcomes = []
    for source, outcome in distribute(sources, crew):
        outcomes.append((source, outcome))
        if len(outcomes) == 1:
            (process,) = crew._processes.values()
            os.kill(process.pid or 0, signal.SIGKILL)
    assert sorted(source for source, _ in outcomes) == sources
    assert not [outcome for _, outcome in outcomes if isinstance(outcome, Exception)]


def test_workers_that_cannot_start_end_the_run(bundle: Path, tmp_path: Path) -> None:
    sources = images(tmp_path / "in", 2)
    other = Job(bundle, None, "cpu", PredictOptions(), tmp_path / "out", "another model")
    with pytest.raises(WorkerError) as caught:
        list(distribute(sources, Processes(other, 1)))
    assert caught.value.code == "WORKER_MODEL"
    elsewhere = Job(bundle, None, "cpu", PredictOptions(), tmp_path / "out", "", sign=tmp_path / "none")
    answer = Worker(elsewhere).open()
    assert isinstance(answer, WorkerError)
    assert answer.code == "WORKER_FILES"


# Without processes: who is asked for what


class Scripted:
    """A crew whose workers answer at once, or die when ``dies`` says so."""

    def __init__(self, size: int, dies: Callable[[int, str], bool]) -> None:
        self.size = size
        self.dies = dies
        self.answers: list[tuple[Hashable, Answer]] = []
        self.started = 0
        self.sent: list[tuple[Hashable, str, bool]] = []
        self.ended = False

    def start(self) -> Hashable:
        self.started += 1
        self.answers.append((self.started, WorkerError("X", "start") if self.dies(self.started, "start") else []))
        return self.started

    def send(self, worker: Hashable, task: Task, again: bool) -> None:
        self.sent.append((worker, str(task[0]), again))
        died = self.dies(int(str(worker)), str(task[0]))
        self.answers.append((worker, WorkerError("WORKER_DIED", "gone") if died else [("done", True)] * len(task)))  # type: ignore[list-item]

    def hear(self, seconds: float) -> list[tuple[Hashable, Answer]]:
        return [self.answers.pop(0)] if self.answers else []

    def end(self) -> None:
        self.ended = True


def test_a_task_is_given_twice_at_most_and_never_to_the_dead() -> None:
    crew = Scripted(2, lambda worker, task: task == "b")
    outcomes = dict(distribute([Path(name) for name in "abcd"], crew))
    assert isinstance(outcomes[Path("b")], WorkerError)
    assert [again for _, task, again in crew.sent if task == "b"] == [False, True]
    dead = {worker for worker, task, _ in crew.sent if task == "b"}
    assert len(dead) == 2
    assert all(outcomes[Path(name)] == ("done", True) for name in "acd")
    assert crew.ended


def test_workers_that_die_at_their_start_are_not_replaced_for_ever() -> None:
    crew = Scripted(3, lambda worker, task: task == "start")
    with pytest.raises(WorkerError, match="start"):
        list(distribute([Path("a"), Path("b"), Path("c"), Path("d")], crew))
    assert crew.started == 3
    assert crew.ended
    some = Scripted(3, lambda worker, task: task == "start" and worker != 2)
    assert len(list(distribute([Path("a"), Path("b"), Path("c")], some))) == 3


def test_no_more_workers_than_work() -> None:
    crew = Scripted(8, lambda worker, task: False)
    assert len(list(distribute([Path("a"), Path("a.nii"), Path("b")], crew))) == 3
    assert crew.started == 2  # a and a.nii would have results of one name
    none = Scripted(8, lambda worker, task: False)
    assert list(distribute([], none)) == []
    assert (none.started, none.ended) == (0, True)


def test_a_worker_ends_with_the_run(bundle: Path, tmp_path: Path) -> None:
    """One that went on would write what the next run writes."""
    code = (
        "import sys, time; from pathlib import Path; from tests.batch.test_workers import Processes, job_of;"
        "crew = Processes(job_of(Path(sys.argv[1]), Path(sys.argv[2])), 1); worker = crew.start();"
        "print(crew._processes[worker].pid, crew.hear(600)[0][1], flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(bundle), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with parent:
        assert parent.stdout is not None
        child, _, answer = parent.stdout.readline().strip().partition(" ")
        assert answer == "[]"  # it is ready
        assert lives(int(child))
        parent.kill()
    end = time.monotonic() + 60
    while lives(int(child)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives(int(child))


def lives(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie that nobody has asked about yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
