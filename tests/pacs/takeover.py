"""Workers that die, freeze and are replaced in the middle of a full queue: python -m tests.pacs.takeover --series 100

Receiver, two worker processes, PostgreSQL and Orthanc, with a site's own lease times. Three plays, each with so many
series: a worker is killed and never started again; one is frozen past its lease and woken; both are killed while the
queue is full, and workers of the next release with another bundle take their place. In each every series must come out
once. The last line reads ``300 done 0 stranded taken over after 40 s``, and the exit status agrees.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine, select

from accunet_monai.bundle import write_manifest
from accunet_monai.pacs.database import make_engine, reading
from accunet_monai.pacs.jobs import ENDED, counts
from accunet_monai.pacs.tables import jobs, revisions
from tests import made_bundle
from tests.pacs import chaos
from tests.pacs.processes import wait_until
from tests.pacs.recovery import HELD, Recovery

SLOW = 2.0
"""Seconds more before a SEG is stored, so that workers are met in the middle of jobs."""

TAKE_OVER_SECONDS = 60
END_SECONDS = 600


@dataclass
class Play:
    """The site in one play, with workers started and series on their way."""

    it: chaos.Theatre
    engine: Engine
    recovery: Recovery

    @property
    def ended(self) -> int:
        return sum(counts(self.engine).get(state, 0) for state in ENDED)

    def holds(self, name: str) -> int:
        """How many jobs a worker is at."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(jobs.c.executor).where(jobs.c.state.in_(HELD))).scalars()
            return sum(f"-{self.it.processes[name].pid}-" in str(executor) for executor in rows)

    def kill(self, *names: str) -> None:
        for name in names:
            self.it.kill(name)
            self.recovery.killed(name, self.it.processes[name].pid)


def in_the_middle(play: Play) -> int:
    """Two workers are at it, a quarter is done; how many jobs the first of them holds."""
    for name in ("worker 1", "worker 2"):
        play.it.start(name, slow=SLOW)
    play.it.start("sender")
    wait_until(lambda: play.ended >= len(play.it.sources) // 4 and play.holds("worker 1") > 1, END_SECONDS)
    return play.holds("worker 1")


def killed(play: Play) -> str:
    """One of two workers is killed in the middle of jobs and never started again."""
    held = in_the_middle(play)
    play.kill("worker 1")
    wait_until(play.recovery.settled, END_SECONDS)
    return f"killed with {held} jobs in hand after {play.ended} of {len(play.it.sources)}"


def frozen(play: Play) -> str:
    """One of two is frozen in the middle of jobs, for longer than its lease, and wakes up when others did them."""
    held = in_the_middle(play)
    asleep = play.it.processes["worker 1"]
    asleep.send(signal.SIGSTOP)
    play.recovery.killed("worker 1", asleep.pid)
    wait_until(play.recovery.settled, END_SECONDS)
    asleep.send(signal.SIGCONT)
    status = asleep.wait(60)
    if status in (None, 0) or '"lease_lost"' not in asleep.log.read_text(encoding="utf-8"):
        raise RuntimeError(f"the worker that was frozen should have ended, its status is {status}")
    return f"frozen with {held} jobs in hand, and ended when it woke"


def upgraded(play: Play) -> str:
    """All workers are killed while the queue is full; the next release has other steps and another bundle."""
    count = len(play.it.sources)
    play.it.start("sender")
    wait_until(lambda: counts(play.engine).get("queued", 0) == count, END_SECONDS)
    for name in ("worker 1", "worker 2"):
        play.it.start(name, slow=SLOW)
    wait_until(lambda: play.ended > 0 and play.holds("worker 1") > 1 and play.holds("worker 2") > 1, END_SECONDS)
    held = play.holds("worker 1") + play.holds("worker 2")
    play.kill("worker 1", "worker 2")
    made_bundle.write_metadata(play.it.bundle, {**made_bundle.read_metadata(play.it.bundle), "version": "9.9.9"})
    write_manifest(play.it.bundle)
    for name in ("worker 3", "worker 4"):
        play.it.start(name, version="2")
    return f"upgraded with {held} jobs in hand and {counts(play.engine).get('queued', 0)} queued"


def perform(act: Callable[[Play], str], series: int) -> tuple[int, float, bool]:
    """Series that came out, the longest time until a job was taken over, and whether all is in order."""
    with chaos.theatre(series) as it:
        engine = make_engine(it.postgres.url)
        expected = sum(len(list(one.iterdir())) for one in it.sources)
        play = Play(it, engine, Recovery(it.postgres.url, expected, claimed=True))
        it.start("receiver")
        began = time.monotonic()
        told = act(play)
        ended = chaos.patiently(engine, chaos.all_ended(it), END_SECONDS)
        taken_over = play.recovery.close()
        with reading(engine) as connection:
            done = select(revisions.c.series_uid).join(jobs, jobs.c.revision_id == revisions.c.id)
            out = len(set(connection.execute(done.where(jobs.c.state == "done")).scalars()))
        verdict = chaos.judge(it, engine)
        engine.dispose()
    lasted = time.monotonic() - began
    print(f"{told}; these were taken over after {taken_over:.1f} s; {out} done after {lasted:.0f} s")
    print(f"  {dict(verdict.states)} {dict(verdict.codes) or ''} {verdict.line}", flush=True)
    return out, taken_over, ended and verdict.line == "lost 0 duplicate 0 partial 0"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=100)
    options = parser.parse_args()
    results = [perform(act, options.series) for act in (killed, frozen, upgraded)]
    total, longest = sum(out for out, _, _ in results), max(seconds for _, seconds, _ in results)
    stranded = len(results) * options.series - total
    print(f"{total} done {stranded} stranded taken over after {longest:.0f} s")
    sys.exit(stranded > 0 or longest > TAKE_OVER_SECONDS or not all(fine for _, _, fine in results))
