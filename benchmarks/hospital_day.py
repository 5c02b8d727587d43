"""How many workers does a hospital need, and how long does it wait? 100 000 studies in virtual time.

    python benchmarks/hospital_day.py --studies 100000 --target-minutes 10 --chart docs/images/hospital_day.png

A working day with bursts at the full and half hour; a quarter of the series is for a bundle; some slices come late; the
PACS is away for 20 minutes at half past ten and twice for two in the afternoon, refuses some objects and loses a few
that it said it has stored; workers die or freeze. The site's own tables and functions do the work: what the registrar
records, completeness and revisions, decisions, the choice of jobs that are due, claims, leases, the workflow's steps,
take-over, retries and dead letters, deliveries. Stand-ins in virtual time are the clock, DBOS (which would not keep up:
this one keeps the steps that are done and starts what waits, as DBOS does), the files, the network, and the PACS.

The number of workers is estimated first, from when series are complete and how long the network takes for each; the
day then runs with that many, or with ``--workers``. The last line tells what was lost and what came out twice.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sqlalchemy import Engine, func, select

from accunet_monai.pacs import audit
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.tables import decisions, deliveries, instances, jobs, revision_instances, revisions
from benchmarks.hospital.day import DAY, MIDNIGHT, Hospital, Plan, hospital, make_studies, memory_folder, simulated_site
from benchmarks.hospital.parts import Duration
from benchmarks.measuring.report import Report

SHARES = (50, 95, 99, 100)
AVAILABLE = 0.97
"""The part of its time that a worker lives, for the estimate."""


@dataclass(frozen=True)
class Outcome:
    """What became of a day.

    Args:
        seconds: from the last slice of each revision until its SEG was confirmed at the PACS, sorted.
        states: state of jobs → count.
        codes: of dead jobs.
        lost: series for a bundle whose newest revision did not come out, nor died with a code.
        duplicates: objects at the PACS beyond one for each revision, and those of no revision.
    """

    seconds: list[float]
    states: Counter[str]
    codes: Counter[str]
    lost: int
    duplicates: int


def main() -> None:
    options = _read_options()
    logging.disable()
    report = Report(options.output)
    plan = Plan(options.studies, seconds=Duration(options.seconds), seed=options.seed)
    waits = {workers: estimated(plan, workers) for workers in _around(plan, options)}
    enough = next((n for n, found in waits.items() if share(found, 95) <= 60 * options.target_minutes), max(waits))
    rows = [(str(n), *(_minutes(share(found, p)) for p in SHARES)) for n, found in waits.items()]
    columns = ("workers", *(f"{_name(p)}, min" for p in SHARES))
    report.table("Estimate", columns, rows, f"{enough} workers for a 95th percentile of {options.target_minutes:g} min")
    plan = replace(plan, workers=options.workers or enough)
    began = time.monotonic()
    with memory_folder() as folder, hospital(plan, simulated_site(folder, attempts=options.attempts)) as it:
        it.run()
        outcome = judged(it)
    report.paragraph(
        f"{plan.studies} studies, {len(outcome.seconds)} results, {it.deaths} deaths of {plan.workers} workers; "
        f"{sum(it.archive.objects.values()) - len(it.archive.objects)} sent twice; "
        f"jobs {dict(outcome.states)} {dict(outcome.codes) or ''}; simulated in {time.monotonic() - began:.0f} s."
    )
    row = (str(plan.workers), *(_minutes(share(outcome.seconds, p)) for p in SHARES))
    report.table("The day", columns, [row], "from the last slice until the PACS confirmed the SEG")
    if options.chart is not None:
        draw(it, options.chart)
    print(f"lost {outcome.lost} duplicate {outcome.duplicates}")
    sys.exit(outcome.lost + outcome.duplicates > 0)


def estimated(plan: Plan, workers: int) -> list[float]:
    """Waits in a line before so many networks that do one series after the other; sorted."""
    free = [0.0] * workers
    chosen = [study for study in make_studies(plan) if study.chosen]
    waits = []
    for last, number in sorted((last, number) for number, study in enumerate(chosen) for last in study.slices[1:]):
        end = max(last + 31.0, heapq.heappop(free)) + plan.seconds.of(f"{number}") / AVAILABLE
        heapq.heappush(free, end)
        delivered = end + 3.0
        back = next((back for away, back in plan.outages if away <= delivered < back), delivered)
        waits.append(back - last)
    return sorted(waits)


def judged(it: Hospital) -> Outcome:
    """What the tables say, against what was meant to come and what the PACS has."""
    audit.verify(it.engine)
    with reading(it.engine) as connection:
        newest = select(revisions.c.series_uid, func.max(revisions.c.number)).group_by(revisions.c.series_uid)
        numbers = {row[0]: row[1] for row in connection.execute(newest)}
        rows = connection.execute(select(jobs, revisions.c.series_uid, revisions.c.number).join(revisions)).all()
        chosen = select(func.count()).select_from(decisions).where(decisions.c.outcome == "chosen")
        made = connection.execute(chosen).scalar_one()
    expected = {study.uid: len(study.slices) - 1 for study in make_studies(it.plan) if study.chosen}
    ended = {(row.series_uid, row.number): row for row in rows if row.state in ("done", "dead")}
    lost = sum((uid, numbers.get(uid)) not in ended for uid in expected) + abs(made - len(rows))
    lost += sum(numbers.get(uid) != count for uid, count in expected.items())
    files = Counter(f"{row.seg_sha256}.dcm" for row in rows if row.state == "done")
    lost += sum(name not in it.archive.objects for name in files)
    meant = {f"{row.seg_sha256}.dcm" for row in rows if row.seg_sha256}
    duplicates = len(set(it.archive.objects) - meant) + sum(count - 1 for count in files.values())
    states, codes = (Counter(row.state for row in rows), Counter(row.code for row in rows if row.state == "dead"))
    return Outcome(_delays(it.engine), states, codes, lost, duplicates)


def _delays(engine: Engine) -> list[float]:
    last = (
        select(revision_instances.c.revision_id, func.max(instances.c.received_at).label("at"))
        .join(instances, instances.c.sop_instance_uid == revision_instances.c.sop_instance_uid)
        .group_by(revision_instances.c.revision_id)
        .subquery()
    )
    query = select(deliveries.c.changed_at - last.c.at).join(jobs, jobs.c.id == deliveries.c.job_id)
    query = query.join(last, last.c.revision_id == jobs.c.revision_id).where(deliveries.c.state == "confirmed")
    with reading(engine) as connection:
        return sorted(connection.execute(query).scalars())


def share(values: Sequence[float], percent: int) -> float:
    """That part of sorted values is at most so much."""
    return values[max(0, -(-len(values) * percent // 100) - 1)]


def draw(it: Hospital, path: Path) -> None:
    """Jobs that wait and run over the day, and what arrived."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, figsize=(9, 5), sharex=True, height_ratios=(1, 2), layout="constrained")
    begins = [(study.slices[0] - MIDNIGHT) / 3600 for study in make_studies(it.plan)]
    above.hist(begins, bins=[n / 4 for n in range(97)], color="#5b7f95")
    above.set_ylabel("studies a\nquarter hour")
    hours = [one.hour for one in it.samples]
    kinds = {"queued": "#c9a227", "running": "#5b7f95", "delivering": "#a23b3b"}
    below.stackplot(hours, *([getattr(one, kind) for one in it.samples] for kind in kinds), colors=kinds.values())
    below.legend([*kinds], loc="upper right")
    below.set_ylabel("open jobs")
    below.set_xlabel(f"hour of the day; {it.plan.studies:,} studies, {it.plan.workers} workers")
    for axes in (above, below):
        axes.set_xlim(0, max(24, max(hours)))
        axes.spines[["top", "right"]].set_visible(False)
        for away, back in it.plan.outages:
            axes.axvspan((away - MIDNIGHT) / 3600, (back - MIDNIGHT) / 3600, color="#a23b3b", alpha=0.2, lw=0)
    below.set_xticks(range(0, 25, 3))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _around(plan: Plan, options: argparse.Namespace) -> range:
    """Numbers of workers from one that can do the day's work at all."""
    work = plan.studies * plan.chosen * statistics.fmean(plan.seconds.of(f"{n}") for n in range(1000))
    least = max(1, int(work / DAY))
    return range(least, 4 * least + 4)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def _name(percent: int) -> str:
    return "max" if percent == 100 else f"p{percent}"


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="that arrive in a day")
    parser.add_argument("--workers", type=int, help="instead of the estimated number")
    parser.add_argument("--seconds", type=float, default=8.0, help="that the network takes for a series, median")
    parser.add_argument("--target-minutes", type=float, default=10.0, help="95th percentile")
    parser.add_argument("--attempts", type=int, default=10, help="jobs.attempts of the site's settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chart", type=Path, help="a PNG file")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
