"""What a training logs goes through a thread: in batches, each thing once, and onto disk while MLflow is away.

The training hands over numbers and pictures and goes on. While the server does not answer, everything is written to
the folder ``unsent`` beside the weights and sent when it answers again, or by the training that resumes this one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from PIL import Image

from accunet_monai.training.tracking.runs import (
    BEAT_SECONDS,
    beat,
    close_stale_runs,
    connect,
    unreachable,
    without_password,
)
from accunet_monai.volumes import atomic_output

UNSENT = "unsent"
METRICS_PER_CALL = 1000
"""MLflow takes no more at once."""

_GATHER_SECONDS = 1.0  # metrics of so long a time go out together
_LONGEST_PAUSE = 60.0  # seconds between attempts while the server is away
_PATIENCE = 30.0  # seconds that the end of a training waits for a server that is away

_METRICS, _STATUS = "metrics.jsonl", "status"
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")

_logger = logging.getLogger(__name__)

Entry = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""


class Outbox:
    """Send metrics, pictures and files of one run from a thread.

    Each (metric, step) and each (picture, step) is sent once, those counted that the run has already.

    Args:
        client: of the tracking store.
        run_id: whose they are.
        folder: the training's output folder; what cannot be sent waits in ``unsent/RUN_ID`` there.
        also_alive: further runs that this training keeps alive, e.g. the parent.
        sampled: gives metrics of the machine, asked every ten seconds.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        folder: Path,
        also_alive: Iterable[str] = (),
        sampled: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.unsent = folder / UNSENT / run_id
        self._alive = (run_id, *also_alive)
        self._sampled = sampled
        self._samples = 0
        self._seen: set[tuple[str, int]] = set()
        self._lock = threading.Condition()
        self._metrics: list[Entry] = []
        self._open: dict[tuple[str, int], Entry] = {}  # neither sent nor on disk
        self._jobs: list[tuple[str, Callable[[], bytes] | None]] = []
        self._closing = False
        self._patience = _PATIENCE
        self._failures = 0
        self._next_attempt = 0.0
        self._thread = threading.Thread(target=self._work, name="mlflow outbox", daemon=True)

    def start(self, resumed: bool = False) -> None:
        """Begin to send; of a resumed run ask first what it has, and send first what was kept."""
        if resumed:
            (self.unsent / _STATUS).unlink(missing_ok=True)
            self._seen |= logged_metrics(self.client, self.run_id) | logged_pictures(self.client, self.run_id)
            self._seen |= {(entry[0], entry[3]) for entry in self._kept_metrics()}
            self._samples = 1 + max((step for key, step in self._seen if key.startswith("system/")), default=-1)
        self._failures = int(self.unsent.is_dir())
        self._thread.start()

    def last_step(self, *prefixes: str) -> int | None:
        """The last step of what has been logged under keys that begin so; ``None`` where there is nothing."""
        return max((step for key, step in self._seen if key.startswith(prefixes)), default=None)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of a step; returns at once."""
        now = int(time.time() * 1000)
        self.entries([(name, float(value), now, step) for name, value in values.items()])

    def entries(self, entries: Iterable[Entry]) -> None:
        """Log numbers of one or several steps; returns at once."""
        with self._lock:
            for entry in entries:
                key = (entry[0], entry[3])
                if key not in self._seen:
                    self._seen.add(key)
                    self._open[key] = entry
                    self._metrics.append(entry)

    def open_entries(self) -> list[Entry]:
        """Numbers that are neither sent nor on disk: a process that is killed now takes them along."""
        with self._lock:
            return list(self._open.values())

    def picture(self, key: str, step: int, png: Callable[[], bytes]) -> None:
        """Log a picture for MLflow's image slider.

        Args:
            key: of the slider; letters, digits, ``_``, ``-``, ``.``, ``/``.
            step: e.g. the epoch.
            png: draws it; called in the sending thread.
        """
        with self._lock:
            if (key, step) not in self._seen:
                self._seen.add((key, step))
                self._jobs.append((f"pictures/{key}+{step}.png", png))
                self._lock.notify()

    def file(self, path: str, content: Callable[[], bytes]) -> None:
        """Log an artifact.

        Args:
            path: inside the run.
            content: gives it; called in the sending thread.
        """
        with self._lock:
            self._jobs.append((f"files/{path}", content))
            self._lock.notify()

    def folder(self, folder: Path, prefix: str = "") -> None:
        """Log all files of a folder, which are copied: it may be gone when they are sent."""
        for path in sorted(item for item in folder.rglob("*") if item.is_file()):
            name = f"files/{prefix}{path.relative_to(folder).as_posix()}"
            (self.unsent / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.unsent / name)
            with self._lock:
                self._jobs.append((name, None))

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        with self._lock:
            self._jobs.append((f"tags/{name}", value.encode))

    def close(self, status: str | None = None, patience: float = _PATIENCE) -> bool:
        """Send what is left, end the run and the thread; returns whether nothing stays behind on disk.

        Args:
            status: that the run ends with: ``FINISHED``, ``FAILED`` or ``KILLED``; ``None`` leaves it as it is.
            patience: seconds to go on trying while the server is away.
        """
        with self._lock:
            if status is not None:
                self._jobs.append((_STATUS, status.encode))
            self._closing, self._patience, self._next_attempt = True, patience, 0.0
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join()
        if self._is_kept():
            _logger.warning("MLflow does not answer: what could not be logged is kept in %s", self.unsent)
            return False
        return True

    def _work(self) -> None:
        beaten = sampled = 0.0
        while True:
            with self._lock:
                if not (self._jobs or self._closing):
                    self._lock.wait(_GATHER_SECONDS)
                closing = self._closing
                metrics, self._metrics = self._metrics, []
                jobs, self._jobs = self._jobs, []
            now = time.monotonic()
            if self._sampled is not None and now - sampled >= 10 and not closing:
                sampled = now
                self._sample()
            self._send_or_keep(metrics, jobs)
            if now - beaten >= BEAT_SECONDS and not closing:
                beaten = now
                self._try(lambda: beat(self.client, *self._alive))
            if closing and not self._metrics and not self._jobs:
                self._last_attempts()
                return

    def _sample(self) -> None:
        if self._sampled is not None:
            self.metrics(self._sampled(), self._samples)
            self._samples += 1

    def _send_or_keep(self, metrics: list[Entry], jobs: list[tuple[str, Callable[[], bytes] | None]]) -> None:
        if self._failures and time.monotonic() >= self._next_attempt:
            self._try(self._send_kept)
        if metrics and (self._failures or not self._try(lambda: self._send_metrics(metrics))):
            self._keep_metrics(metrics)
        with self._lock:
            for entry in metrics:
                self._open.pop((entry[0], entry[3]), None)
        for name, content in jobs:
            path = self.unsent / name
            if content is not None and not _made(path, content):
                continue
            if not self._failures:
                self._try(lambda path=path: self._send_file(path))  # type: ignore[misc]

    def _last_attempts(self) -> None:
        end = time.monotonic() + self._patience
        while self._is_kept() and not self._try(self._send_kept) and time.monotonic() < end:
            time.sleep(1.0)
        if not self._is_kept():
            shutil.rmtree(self.unsent, ignore_errors=True)
            with contextlib.suppress(OSError):  # others have something there
                self.unsent.parent.rmdir()

    def _try(self, send: Callable[[], Any]) -> bool:
        try:
            send()
        except Exception as error:  # whatever it is, a training does not end because its log cannot be written
            self._failures += 1
            self._next_attempt = time.monotonic() + min(2.0**self._failures, _LONGEST_PAUSE)
            if self._failures == 1:
                _logger.warning(
                    "MLflow does not answer (%s); the log is kept in %s", without_password(str(error)), self.unsent
                )
            return False
        self._failures, self._next_attempt = 0, 0.0
        return True

    def _send_metrics(self, entries: list[Entry]) -> None:
        for first in range(0, len(entries), METRICS_PER_CALL):
            refused = self._refused(entries[first : first + METRICS_PER_CALL])
            if refused:
                names = sorted({entry[0] for entry, _ in refused})
                _logger.warning("MLflow refuses the metrics %s: %s", ", ".join(names), refused[0][1])

    def _refused(self, entries: list[Entry]) -> list[tuple[Entry, MlflowException]]:
        """Send a batch and give what MLflow will not take: it refuses a batch whole, so halves are tried alone."""
        try:
            self.client.log_batch(self.run_id, [Metric(*entry) for entry in entries])
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            if len(entries) == 1:
                return [(entries[0], error)]
            middle = len(entries) // 2
            return self._refused(entries[:middle]) + self._refused(entries[middle:])
        return []

    def _keep_metrics(self, entries: list[Entry]) -> None:
        self.unsent.mkdir(parents=True, exist_ok=True)
        with (self.unsent / _METRICS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def _kept_metrics(self) -> list[Entry]:
        path = self.unsent / _METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [entry for entry in map(_entry, lines) if entry is not None]

    def _is_kept(self) -> bool:
        return any(path.is_file() for path in self.unsent.rglob("*"))

    def _send_kept(self) -> None:
        """Everything that waits on disk; what is sent goes. The run's status is last by its name."""
        for path in sorted(path for path in self.unsent.rglob("*") if path.is_file()):
            if path.name == _METRICS:
                self._send_metrics(self._kept_metrics())
                path.unlink()
            elif not path.name.startswith("."):
                self._send_file(path)

    def _send_file(self, path: Path) -> None:
        kind, *parts = path.relative_to(self.unsent).parts
        with _refusals_told("/".join(parts) or kind):
            if kind == _STATUS:
                self.client.set_terminated(self.run_id, path.read_text(encoding="utf-8"))
            elif kind == "tags":
                self.client.set_tag(self.run_id, parts[0], path.read_text(encoding="utf-8"))
            elif kind == "pictures":
                key, _, step = "/".join(parts).removesuffix(".png").rpartition("+")
                with Image.open(path) as image:
                    self.client.log_image(self.run_id, image, key=key, step=int(step), synchronous=True)
            else:
                self.client.log_artifact(self.run_id, str(path), "/".join(parts[:-1]) or None)
        path.unlink()


def send_unsent(client: MlflowClient, output_dir: Path) -> bool:
    """Send what trainings in this output folder could not log while MLflow was away; returns whether all of it went."""
    folders = sorted(path for path in (output_dir / UNSENT).glob("*") if path.is_dir())
    boxes = [Outbox(client, folder.name, output_dir) for folder in folders]
    for box in boxes:
        box.start()
    return not [box for box in boxes if not box.close(patience=0.0)]


def logged_metrics(client: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    """(metric, step) of all that a run has."""
    names = client.get_run(run_id).data.metrics
    return {(name, entry.step) for name in names for entry in client.get_metric_history(run_id, name)}


def logged_pictures(client: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    """(key, step) of all pictures for the slider that a run has whole."""
    names = [Path(item.path).name for item in client.list_artifacts(run_id, "images")]
    parts = [name.split("+") for name in names if name.endswith("+compressed.webp")]  # it is written last
    return {(part[0].replace("~", "/"), int(part[2])) for part in parts if part[1:2] == ["step"]}


def _made(path: Path, content: Callable[[], bytes]) -> bool:
    try:
        made = content()
    except Exception:  # a picture that cannot be drawn must not end the training
        _logger.warning("could not make %s", path.name, exc_info=True)
        return False
    with atomic_output(path) as stream:
        stream.write(made)
    return True


@contextlib.contextmanager
def _refusals_told(what: str) -> Iterator[None]:
    """Go on after what MLflow will never take, e.g. for a run that was deleted in the web page."""
    try:
        yield
    except MlflowException as error:
        if error.error_code not in _REFUSALS:
            raise
        _logger.warning("MLflow refuses %s: %s", what, error)


def _entry(line: str) -> Entry | None:
    """A kept number; ``None`` for a line that a killed process did not finish."""
    try:
        name, value, milliseconds, step = json.loads(line)
        return str(name), float(value), int(milliseconds), int(step)
    except ValueError:
        return None


def tidy(output_dirs: Iterable[Path] = (), folder: str | os.PathLike[str] = "runs") -> tuple[list[str], list[Path]]:
    """Send what trainings in these folders kept while MLflow was away, and end runs of killed ones as KILLED.

    Args:
        output_dirs: of trainings.
        folder: where the default database lies; see :func:`tracking_uri`.

    Returns:
        Ids of the runs that were ended, and the folders of which not all could be sent.

    Raises:
        TrackingError: ``TRACKING_SERVER``.
    """
    client = connect(folder)
    unsent = [path for path in output_dirs if not send_unsent(client, path)]
    try:
        experiments = [str(found.experiment_id) for found in client.search_experiments()]
        return close_stale_runs(client, experiments), unsent
    except MlflowException as error:
        raise unreachable(client, error) from error
