"""The simulated day: everything comes out once on the site's own logic, and fewer workers give longer waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from accunet_monai.pacs.jobs import cancel
from benchmarks.hospital.day import Plan, hospital, make_studies, memory_folder, simulated_site
from benchmarks.hospital.parts import Duration
from benchmarks.hospital_day import Outcome, draw, estimated, judged, share

MINUTES_EACH = Duration(400.0)


def day(workers: int, chart: Path | None = None) -> Outcome:
    plan = Plan(200, chosen=0.5, late=0.1, workers=workers, seconds=MINUTES_EACH, deaths=4)
    with memory_folder() as folder, hospital(plan, simulated_site(folder, attempts=10)) as it:
        it.run()
        assert it.deaths > 0
        if chart is not None:
            draw(it, chart)
            job = next(iter(it.queue.attempts.values())).job.job_id
            with pytest.raises(Exception, match="the job is"):
                cancel(it.engine, job)  # it ended
            outcome = judged(it)
            it.archive.objects.popitem()
            it.archive.objects["nobody's.dcm"] += 1
            spoiled = judged(it)
            assert (spoiled.lost, spoiled.duplicates) == (outcome.lost + 1, outcome.duplicates + 1)
            return outcome
        return judged(it)


def test_all_comes_out_once_and_fewer_workers_give_longer_waits(tmp_path: Path) -> None:
    one, three = day(1), day(3, tmp_path / "chart.png")
    for outcome in (one, three):
        assert (outcome.lost, outcome.duplicates) == (0, 0)
        assert set(outcome.states) <= {"done", "superseded"}
    assert share(one.seconds, 50) > 1.5 * share(three.seconds, 50)
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_the_estimate_falls_with_the_number_of_workers_and_never_below_the_work() -> None:
    plan = Plan(400, seconds=MINUTES_EACH)
    medians = [share(estimated(plan, workers), 50) for workers in (1, 2, 4, 40)]
    assert medians == sorted(medians, reverse=True)
    chosen = sum(study.chosen for study in make_studies(plan))
    least = min(MINUTES_EACH.of(f"{number}") for number in range(chosen))
    assert estimated(plan, 40)[0] > least
