"""The states of jobs, leases, the queue's serializer, the audit chain and the logs, on SQLite and without processes."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from sqlalchemy import Engine, delete, insert, select, update

from accunet_monai.errors import AccunetError, PacsError
from accunet_monai.pacs import audit, jobs, logs
from accunet_monai.pacs.database import now, open_database, reading
from accunet_monai.pacs.jobs import Hold
from accunet_monai.pacs.leases import Lease, dead_among
from accunet_monai.pacs.queue import PlainJson, queue_url
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.status import drain, resume, status
from accunet_monai.pacs.tables import audit as audit_table
from accunet_monai.pacs.tables import deliveries, leases, revisions
from accunet_monai.pacs.tables import jobs as table
from accunet_monai.pacs.web import make_app


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'state.sqlite3'}")
    yield engine
    engine.dispose()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    jobs_section = {"attempts": 3, "backoff_seconds": 100}
    return Site(ae_title="A", port=1, storage=tmp_path, key_file=tmp_path / "key", jobs=jobs_section)  # type: ignore[arg-type]


def add_job(engine: Engine, name: str, series: str = "1.2", number: int = 1, priority: int = 0) -> str:
    at = now()
    with engine.begin() as connection:
        head = {"id": f"r{name}", "series_uid": series, "number": number, "made_at": at, "instances_digest": "0"}
        connection.execute(insert(revisions).values(**head))
        what = {"id": name, "revision_id": f"r{name}", "bundle": "b", "bundle_digest": "d", "shadow": 0}
        state = {"state": "queued", "attempts": 0, "priority": priority, "made_at": at, "changed_at": at}
        connection.execute(insert(table).values(**what, **state))
    return name


def state_of(engine: Engine, name: str) -> Any:
    with reading(engine) as connection:
        return connection.execute(select(table).where(table.c.id == name)).one()


def test_a_job_goes_from_queued_to_done(engine: Engine) -> None:
    hold = Hold(engine, Lease(engine), add_job(engine, "one"), 0)
    assert hold.claim() is not None
    assert state_of(engine, "one").state == "running"
    hold.stored("file", "digest", "1.2.3", ["a", "b"])
    assert jobs.deliveries_of(engine, "one") == {"a": "waiting", "b": "waiting"}
    for name in ("a", "b"):
        assert hold.sending(name)
        hold.confirmed(name)
    assert hold.finished() == "done"
    events = [json.loads(entry)["event"] for entry in entries(engine)]
    assert events == ["seg_stored", "sending", "confirmed", "sending", "confirmed", "job_done"]


def test_failures_wait_longer_each_time_and_end(engine: Engine, site: Site) -> None:
    lease, name = Lease(engine), add_job(engine, "one")
    waits = []
    for attempt in range(3):
        hold = Hold(engine, lease, name, attempt)
        assert hold.claim() is not None
        waits.append(jobs.wait_seconds(attempt, site))
        hold.failed("PACS_UNREACHABLE", passes=True, attempts=3)
    assert waits == [0, 100, 200]
    assert (state_of(engine, name).state, state_of(engine, name).code) == ("dead", "PACS_UNREACHABLE")
    jobs.retry(engine, "on")
    assert state_of(engine, name).state == "queued"
    assert [due.attempt for due in jobs.due(engine, site)] == [3]  # no wait; another three attempts
    other = Hold(engine, lease, add_job(engine, "two", series="9"), 0)
    other.claim()
    assert other.failed("GEOM_TILT", passes=False, attempts=3) == "dead"


def test_jobs_are_due_by_priority_and_when_their_wait_is_over(engine: Engine, site: Site) -> None:
    for number, priority in enumerate((0, 5, 1)):
        add_job(engine, f"j{number}", series=str(number), priority=priority)
    with engine.begin() as connection:
        connection.execute(update(table).where(table.c.id == "j0").values(attempts=1, changed_at=now() - 50))
    assert [due.job_id for due in jobs.due(engine, site)] == ["j1", "j2"]
    with engine.begin() as connection:
        connection.execute(update(table).where(table.c.id == "j0").values(changed_at=now() - 101))
    assert [due.job_id for due in jobs.due(engine, site)] == ["j1", "j2", "j0"]


def test_what_cannot_run_yet_keeps_nothing_from_what_can(engine: Engine, site: Site) -> None:
    Hold(engine, Lease(engine), add_job(engine, "early", number=1), 0).claim()
    for number in (2, 3):
        add_job(engine, f"behind{number}", number=number, priority=9)
    add_job(engine, "free", series="7")
    assert [due.job_id for due in jobs.due(engine, site, limit=1)] == ["free"]


def test_only_jobs_of_dead_workers_and_silent_ones_are_looked_after(engine: Engine) -> None:
    lease, dead = Lease(engine), Lease(engine)
    for name, holder in (("lively", lease), ("silent", lease), ("left", dead)):
        Hold(engine, holder, add_job(engine, name, series=name), 0).claim()
    for name in ("sent", "waiting"):
        add_job(engine, name, series=name)
    dead.release()
    with engine.begin() as connection:
        old = table.c.id.in_(("silent", "sent", "waiting"))
        connection.execute(update(table).where(old).values(changed_at=now() - 61))
    assert {row.id for row in jobs.stuck_jobs(engine, 60, ["sent"])} == {"silent", "left", "sent"}


def test_only_one_of_two_live_workers_claims_a_job(engine: Engine) -> None:
    name, first, second = add_job(engine, "one"), Lease(engine), Lease(engine)
    assert Hold(engine, first, name, 0).claim() is not None
    assert Hold(engine, second, name, 0).claim() is None
    first.release()
    assert Hold(engine, second, name, 0).claim() is not None


def test_what_a_dead_worker_had_stored_is_sent_by_the_next(engine: Engine) -> None:
    first, second = Lease(engine), Lease(engine)
    name = add_job(engine, "one")
    Hold(engine, first, name, 0).claim()
    Hold(engine, first, name, 0).stored("file", "digest", "1.2.3", ["a"])
    other = Hold(engine, second, name, 0)
    with pytest.raises(PacsError, match="JOB_TAKEN"):
        other.sending("a")
    first.release()
    assert other.sending("a")  # the queue goes on after the last step that was done: nobody claims again
    other.confirmed("a")
    assert state_of(engine, name).executor == second.executor_id
    assert other.finished() == "done"


def test_a_job_moves_to_the_bundle_that_took_its_bundles_place(engine: Engine, site: Site) -> None:
    lease, name = Lease(engine), add_job(engine, "one", priority=7)
    hold = Hold(engine, lease, name, 0)
    hold.claim()
    assert hold.moved_to("two", "e", 3)
    assert (state_of(engine, name).state, state_of(engine, name).code) == ("superseded", "BUNDLE_REPLACED")
    (successor,) = jobs.due(engine, site)
    moved = state_of(engine, successor.job_id)
    assert (moved.revision_id, moved.bundle_digest, moved.priority) == (f"r{name}", "e", 7)
    back = Hold(engine, lease, moved.id, 0)
    back.claim()
    assert back.moved_to("three", "f", 3)
    (last,) = jobs.due(engine, site)
    end = Hold(engine, lease, last.job_id, 0)
    end.claim()
    assert end.failed("PACS_UNREACHABLE", passes=False, attempts=3) == "dead"
    other = Hold(engine, lease, add_job(engine, "four", number=2), 0)
    other.claim()
    assert not other.moved_to(last.job_id, "f", 3)  # that one came to its own end
    assert state_of(engine, "four").state == "running"


def test_a_job_follows_a_bundle_that_is_put_back_but_not_for_ever(engine: Engine) -> None:
    lease, here, there = Lease(engine), add_job(engine, "a"), "b"
    begun = []
    while True:  # as two workers with different bundles would hand it to and fro
        row = state_of(engine, here)
        begun.append((here, row.attempts))
        hold = Hold(engine, lease, here, row.attempts)
        assert hold.claim() is not None
        if not hold.moved_to(there, f"digest of {there}", 3):
            break
        assert (state_of(engine, here).code, state_of(engine, there).code) == ("BUNDLE_REPLACED", None)
        here, there = there, here
    assert begun == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]  # the queue knows none of them twice
    assert state_of(engine, "b").state == "running"


@pytest.mark.parametrize(
    "change",
    [
        lambda hold: hold.stored("f", "d", "1", []),
        lambda hold: hold.sending("a"),
        lambda hold: hold.confirmed("a"),
        lambda hold: hold.finished(),
        lambda hold: hold.failed("X", passes=True, attempts=3),
    ],
)
@pytest.mark.parametrize("lost", ["lease", "claim", "cancelled"])
def test_who_lost_lease_or_claim_changes_nothing(engine: Engine, change: Callable[[Hold], object], lost: str) -> None:
    first, second = Lease(engine, seconds=10), Lease(engine, seconds=10)
    hold = Hold(engine, first, add_job(engine, "one"), 0)
    hold.claim()
    if lost == "lease":
        with engine.begin() as connection:
            silent = leases.c.executor_id == first.executor_id
            connection.execute(update(leases).where(silent).values(renewed_at=now() - 11))
        assert second.expire_others() == [first.executor_id]
        assert dead_among(engine, {first.executor_id, second.executor_id}) == {first.executor_id}
    elif lost == "claim":
        with engine.begin() as connection:
            connection.execute(update(table).values(executor=second.executor_id))
    else:
        jobs.cancel(engine, "one")
    before, written = state_of(engine, "one"), entries(engine)
    with pytest.raises(PacsError) as raised:
        change(hold)
    assert raised.value.code == ("LEASE_LOST" if lost == "lease" else "JOB_TAKEN")
    assert state_of(engine, "one") == before
    assert entries(engine) == written


def test_a_lease_that_ran_out_is_kept_while_nobody_took_it(engine: Engine) -> None:
    lease = Lease(engine, seconds=10)
    with engine.begin() as connection:
        connection.execute(update(leases).values(renewed_at=now() - 60))
    lease.renew()
    assert Lease(engine, seconds=10).expire_others() == []


def test_revisions_go_one_after_the_other_and_the_unsent_is_superseded(engine: Engine, site: Site) -> None:
    lease = Lease(engine)
    old = Hold(engine, lease, add_job(engine, "old", number=1), 0)
    old.claim()
    old.stored("f", "d", "1", ["a", "b"])
    assert old.sending("a")
    new = Hold(engine, lease, add_job(engine, "new", number=2), 0)
    assert jobs.due(engine, site) == []
    assert new.claim() is None  # waits for the earlier one
    old.confirmed("a")
    assert not old.sending("b")  # where nothing was sent yet the newer revision goes
    assert jobs.deliveries_of(engine, "old") == {"a": "confirmed", "b": "failed"}
    assert old.finished() == "done"
    assert new.claim() is not None
    unsent = Hold(engine, lease, add_job(engine, "u1", series="3", number=1), 0)
    add_job(engine, "u2", series="3", number=2)
    assert unsent.claim() is None
    assert state_of(engine, "u1").state == "superseded"


def test_the_chain_of_the_audit_log_shows_any_change(engine: Engine) -> None:
    heads = []
    for number in range(4):
        with engine.begin() as connection:
            heads.append(audit.append(connection, "tried", number=number))
    assert audit.verify(engine, heads[1]) == (4, heads[3])
    with engine.begin() as connection:
        connection.execute(delete(audit_table).where(audit_table.c.number == 4))
    assert audit.verify(engine) == (3, heads[2])
    with pytest.raises(PacsError, match="AUDIT_CUT"):
        audit.verify(engine, heads[3])
    with engine.begin() as connection:
        connection.execute(update(audit_table).where(audit_table.c.number == 2).values(entry='{"event": "other"}'))
    with pytest.raises(PacsError, match="entry 2 does not follow") as raised:
        audit.verify(engine)
    assert raised.value.code == "AUDIT_BROKEN"


def test_an_entry_stands_only_with_the_transaction_it_tells_of(engine: Engine) -> None:
    with engine.connect() as connection, connection.begin() as transaction:
        audit.append(connection, "tried")
        transaction.rollback()
    assert audit.verify(engine) == (0, audit.START)


def test_what_dbos_keeps_is_plain_and_errors_are_codes() -> None:
    serializer = PlainJson()
    for data in (None, {"a": [1, "b"]}, {"args": ("job", 1), "kwargs": {}}):
        assert serializer.deserialize(serializer.serialize(data)) == data
    error = AccunetError("SEG_EMPTY", "Müller^Anna has none")
    assert "Anna" not in serializer.serialize(error)
    assert str(serializer.deserialize(serializer.serialize(error))) == "SEG_EMPTY"
    with pytest.raises(TypeError):
        serializer.serialize(object())


def test_the_queue_lies_beside_the_database() -> None:
    assert queue_url("sqlite:////a/state.sqlite3") == "sqlite:////a/state.sqlite3-queue"
    assert queue_url("postgresql+psycopg://u@h:1/n") == "postgresql+psycopg://u@h:1/n"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What logs write, as in a process of the site."""
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers, root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    try:
        logs.configure_logs(stream=stream)
        yield stream
    finally:
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        root.handlers, root.level = handlers, level
        logging.captureWarnings(False)


def test_logs_hold_facts_and_nothing_that_others_say(log: io.StringIO) -> None:
    logs.event("job_done", job="abc", uid="1.2.840.10008.1.2", count=3)
    logging.getLogger("pynetdicom.acse").warning("patient %s", "Müller^Anna")
    try:
        raise ValueError("Müller^Anna")
    except ValueError:
        logging.getLogger("dbos").exception("1.2.840.113619.2.55 failed")
    first, second, third = map(json.loads, log.getvalue().splitlines())
    assert {key: first[key] for key in ("level", "event", "job", "uid", "count")} == {
        "level": "info",
        "event": "job_done",
        "job": "abc",
        "uid": "UID",
        "count": 3,
    }
    assert (second["library"], second["level"]) == ("pynetdicom.acse", "warning")
    assert (third["library"], third["exception"]) == ("dbos", "ValueError")
    assert not any(word in log.getvalue() for word in ("Anna", "113619", "patient"))


def test_what_nothing_caught_is_told_without_its_text(log: io.StringIO) -> None:
    thread = threading.Thread(target=logs.event, args=("Müller^Anna", "Müller^Anna"))
    thread.start()
    thread.join()
    try:
        pydicom.dcmread("/none/Müller^Anna")
    except FileNotFoundError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    raised = PacsError("LEASE_LOST", "Müller^Anna")
    sys.excepthook(PacsError, raised, None)
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    assert {one["event"] for one in found} == {"uncaught"}
    assert [(one["exception"], one["code"]) for one in found] == [
        ("TypeError", None),
        ("FileNotFoundError", None),
        ("PacsError", "LEASE_LOST"),
    ]
    source = Path(logs.__file__).read_text(encoding="utf-8").splitlines()
    name, _, line = found[0]["where"].partition(":")
    assert (name, source[int(line) - 1].strip()[:17]) == ("logs", "logging.getLogger")
    assert found[1]["where"] is None  # not in our source
    assert "ller" not in log.getvalue()


def test_a_worker_whose_lease_ran_out_does_not_count_as_living(engine: Engine, site: Site) -> None:
    lease = Lease(engine, site.jobs.lease_seconds)
    health = next(route for route in make_app(site, engine, "token").routes if getattr(route, "path", "") == "/healthz")

    def answered() -> tuple[int, bytes]:
        answer = asyncio.run(health.endpoint(None))  # type: ignore[attr-defined]
        return answer.status_code, bytes(answer.body)

    assert answered() == (200, b'{"healthy":true,"workers":1}')
    with engine.begin() as connection:
        late = now() - site.jobs.lease_seconds - 1
        connection.execute(update(leases).values(renewed_at=late))
    assert answered() == (503, b'{"healthy":false,"workers":0}')  # killed, and nobody is there to release its lease
    lease.renew()
    assert answered()[0] == 200


def test_a_job_that_was_not_begun_is_put_off_without_wait_or_loss(engine: Engine, site: Site) -> None:
    lease, name = Lease(engine), add_job(engine, "one")
    with engine.begin() as connection:
        connection.execute(update(table).values(attempts=1, changed_at=now() - 101))
    assert Hold(engine, lease, name, 1).put_off(3)
    assert not Hold(engine, lease, name, 1).put_off(3)  # of two workers one does
    (again,) = jobs.due(engine, site)  # its wait is over as it was
    hold = Hold(engine, lease, name, again.attempt)
    assert (again.attempt, jobs.wait_seconds(again.attempt, site)) == (4, 100)
    assert hold.claim() is not None
    assert not hold.put_off(3)  # begun
    assert hold.failed("PACS_UNREACHABLE", passes=True, attempts=3) == "queued"  # the last is still to come


def test_status_counts_and_draining_waits_for_what_runs(engine: Engine, site: Site) -> None:
    lease = Lease(engine)
    hold = Hold(engine, lease, add_job(engine, "one"), 0)
    add_job(engine, "two", series="2")
    hold.claim()
    facts = status(site, engine)
    assert (facts["jobs"], facts["workers"], facts["draining"]) == (
        {"queued": 1, "running": 1},
        [lease.executor_id],
        False,
    )
    with pytest.raises(PacsError, match="1 jobs still run"):
        drain(site, engine, 0.1)
    hold.failed("GEOM_TILT", passes=False, attempts=3)
    drain(site, engine, 0.1)
    assert status(site, engine)["dead"] == {"GEOM_TILT": 1}
    assert status(site, engine)["draining"]
    resume(site)
    assert not status(site, engine)["draining"]


def entries(engine: Engine) -> list[str]:
    with reading(engine) as connection:
        return list(connection.execute(select(audit_table.c.entry).order_by(audit_table.c.number)).scalars())


def test_deliveries_are_made_once_for_each_destination(engine: Engine) -> None:
    hold = Hold(engine, Lease(engine), add_job(engine, "one"), 0)
    hold.claim()
    hold.stored("f", "d", "1", ["a"])
    hold.stored("f", "d", "1", ["a"])
    with reading(engine) as connection:
        assert len(list(connection.execute(select(deliveries)))) == 1
