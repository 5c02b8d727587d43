"""When a series is complete, and every outcome that the rules have for it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian
from sqlalchemy import Connection, select, text, update
from sqlalchemy.event import listen, remove
from sqlalchemy.exc import IntegrityError, OperationalError

from accunet_monai.batch import sources
from accunet_monai.errors import BundleError, PacsError
from accunet_monai.pacs import rules
from accunet_monai.pacs.audit import verify
from accunet_monai.pacs.completeness import bundle_digest, close_complete, job_id, revision_id
from accunet_monai.pacs.database import now, reading
from accunet_monai.pacs.folder import import_folder
from accunet_monai.pacs.inbox import Inbox, OpenSite
from accunet_monai.pacs.judging import Judge
from accunet_monai.pacs.registrar import Arrival, Registrar, record
from accunet_monai.pacs.retention import DAY, clean_up
from accunet_monai.pacs.rules import Decision
from accunet_monai.pacs.settings import BundleRule
from accunet_monai.pacs.tables import (
    asides,
    associations,
    decisions,
    instances,
    jobs,
    revision_instances,
    revisions,
    series,
)
from accunet_monai.pacs.why import why
from tests.pacs.receiving import RawPeer, eventually, instance, plain_site, save, stored_files
from tests.pacs.servers import Postgres
from tests.pacs.small import made_series

MR = {"tag": "Modality", "equals": "MR"}


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    one = Judge(4 * 2**30)
    yield one
    one.close()


class Intake:
    """A site with one rule that series are put into."""

    def __init__(self, folder: Path, judge: Any, completeness: dict[str, Any] | None = None, **more: Any) -> None:
        rule = {name: value for name, value in more.items() if name != "database"}
        whole = {"bundle": "hippocampus_mri", "when": MR, "shadow": True} | rule
        quiet = {"quiet_seconds": 0, **(completeness or {})}
        self.opened = OpenSite(plain_site(folder, bundles=[whole], completeness=quiet, database=more.get("database")))
        self.judge = judge
        self.registrar = self.opened.registrar("test")

    def take(self, folder: Path) -> dict[str, int]:
        return dict(import_folder(folder, self.opened.storage, self.registrar))

    def close(self, count: Any = None) -> list[str]:
        opened = self.opened
        return close_complete(opened.site, opened.engine, opened.storage, self.judge, count)

    def rows(self, table: Any, **where: Any) -> list[Any]:
        with reading(self.opened.engine) as connection:
            return list(connection.execute(select(table).filter_by(**where)).all())

    def decision(self) -> tuple[str, str | None]:
        """Outcome and code of the only one."""
        (row,) = self.rows(decisions)
        return row.outcome, row.code

    def end(self) -> None:
        self.opened.close()


@pytest.fixture
def intake(tmp_path: Path, judge: Judge) -> Iterator[Any]:
    made: list[Intake] = []

    def make(completeness: dict[str, Any] | None = None, *, with_judge: Any = judge, **rule: Any) -> Intake:
        made.append(Intake(tmp_path / "site", with_judge, completeness, **rule))
        return made[-1]

    yield make
    for one in made:
        one.end()


def change(folder: Path, files: Sequence[int] | None = None, **tags: Any) -> Path:
    """Set tags of some files of a folder, by number; of all unless told."""
    for number, file in enumerate(sorted(folder.iterdir())):
        if files is None or number in files:
            ds = pydicom.dcmread(file)
            for keyword, value in tags.items():
                setattr(ds, keyword, value)
            ds.save_as(file)
    return folder


def uids(folder: Path) -> tuple[str, str]:
    head = pydicom.dcmread(next(iter(folder.iterdir())), stop_before_pixels=True)
    return str(head.StudyInstanceUID), str(head.SeriesInstanceUID)


def test_a_series_becomes_a_revision_and_a_job_once(tmp_path: Path, intake: Any) -> None:
    one = intake(priority=3)
    folder = made_series(tmp_path / "a")
    assert one.take(folder) == {"new": 4}
    (made,) = one.close()
    assert one.close() == []
    ((revision, job),) = zip(one.rows(revisions), one.rows(jobs), strict=True)
    members = [(row.sop_instance_uid, row.sha256) for row in one.rows(instances)]
    assert made == revision.id == revision_id(uids(folder)[1], members)
    assert (revision.number, revision.replaces) == (1, None)
    digest = bundle_digest("hippocampus_mri")
    assert job.id == job_id(made, "hippocampus_mri", digest)
    assert (job.state, job.bundle_digest, job.shadow, job.priority, job.attempts) == ("queued", digest, 1, 3, 0)
    assert one.decision() == ("chosen", None)
    assert one.take(folder) == {"same": 4}  # sent again: nothing new
    assert one.close() == []
    assert len(one.rows(revisions)) == len(one.rows(jobs)) == 1
    assert verify(one.opened.engine)[0] == 1


def test_a_late_slice_makes_a_revision_that_replaces_the_one_before(tmp_path: Path, intake: Any) -> None:
    one = intake()
    folder = made_series(tmp_path / "a")
    late = sorted(folder.iterdir())[-1]
    (tmp_path / "late").mkdir()
    shutil.move(late, tmp_path / "late" / late.name)
    one.take(folder)
    (first,) = one.close()
    one.take(tmp_path / "late")
    (second,) = one.close()
    rows = sorted(one.rows(revisions), key=lambda row: row.number)
    assert [(row.id, row.number, row.replaces) for row in rows] == [(first, 1, None), (second, 2, first)]
    assert [len(one.rows(revision_instances, revision_id=made)) for made in (first, second)] == [3, 4]
    assert {row.revision_id for row in one.rows(jobs)} == {first, second}
    told = why(one.opened.engine, uids(folder)[0])
    assert [revision["number"] for revision in told[0]["revisions"]] == [1, 2]
    assert told[0]["state"] == "complete"


def test_quiet_time_and_open_associations_block(tmp_path: Path, intake: Any) -> None:
    one = intake({"quiet_seconds": 30})
    one.take(made_series(tmp_path / "a"))
    assert one.close() == []
    one = intake()
    folder = made_series(tmp_path / "b", seed=1)
    for file in sorted(folder.iterdir()):
        arrive(one.opened, one.registrar, file, association="open one")
    assert one.take(made_series(tmp_path / "c", seed=2)) == {"new": 4}
    one.close()
    assert {row.series_uid for row in one.rows(revisions)} == {uids(tmp_path / "a")[1], uids(tmp_path / "c")[1]}
    assert why(one.opened.engine, uids(folder)[1])[0]["open_associations"] == 1
    one.registrar.closed("open one")
    assert len(one.close()) == 1
    one.registrar = one.opened.registrar("test")


def arrive(opened: OpenSite, registrar: Registrar, file: Path, association: str) -> None:
    assert registrar.register(arrival(opened, file, association)) == "new"


def arrival(opened: OpenSite, file: Path, association: str | None = None, **more: Any) -> Arrival:
    """An instance whose file is on disk."""
    ds = pydicom.dcmread(file)
    meta = ds.file_meta
    uids = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    incoming = opened.storage.open_incoming("test", *uids, meta.TransferSyntaxUID)
    incoming.write(file.read_bytes()[144 + meta.FileMetaInformationGroupLength :])
    return Arrival(incoming.keep(), "push:TEST", association, **more)


def test_an_association_that_goes_on_with_others_holds_a_series_back_for_a_time(tmp_path: Path, intake: Any) -> None:
    one = intake({"association_wait_seconds": 900})
    first, second = (made_series(tmp_path / str(seed), seed=seed) for seed in range(2))
    for file in (*sorted(first.iterdir()), *sorted(second.iterdir())):
        arrive(one.opened, one.registrar, file, association="of a router")
    for quiet, closed in ((890, 0), (910, 1)):
        with one.opened.engine.begin() as connection:
            of_first = update(series).where(series.c.series_uid == uids(first)[1])
            connection.execute(of_first.values(last_received_at=now() - quiet))
        assert len(one.close()) == closed
    assert [row.series_uid for row in one.rows(revisions)] == [uids(first)[1]]
    one.registrar.closed("of a router")


def removed(one: Intake, days: float = 31) -> tuple[int, int]:
    """Makes everything so old, and removes what retention allows."""
    opened, at = one.opened, now() - days * DAY
    with opened.engine.begin() as connection:
        connection.execute(update(series).values(last_received_at=at))
        connection.execute(update(asides).values(received_at=at))
        connection.execute(update(jobs).values(changed_at=at, state="done"))
    for file in stored_files(opened.site):
        os.utime(file, (at, at))
    return clean_up(opened.site, opened.engine)


def test_a_part_of_what_retention_removed_makes_no_revision_and_the_whole_is_the_one_it_was(
    tmp_path: Path, intake: Any
) -> None:
    one = intake()
    folder = made_series(tmp_path / "a")
    one.take(folder)
    (made,) = one.close()
    assert removed(one) == (1, 0)
    rest = tmp_path / "rest"
    rest.mkdir()
    for file in sorted(folder.iterdir())[:2]:
        shutil.move(file, rest / file.name)
    assert one.take(rest) == {"new": 2}
    one.take(made_series(tmp_path / "b", seed=1))
    assert len(one.close()) == 1  # of the other series, which came later
    (told,) = why(one.opened.engine, uids(folder)[1])
    assert (told["code"], told["state"], told["instances"]) == ("REVISION_PARTIAL", "complete", 2)
    assert len(one.rows(revisions)) == len(one.rows(jobs)) == 2
    assert one.take(folder) == {"new": 2}
    assert one.close() == []
    assert len(one.rows(revisions)) == 2
    assert len(one.opened.storage.checkout(one.opened.engine, made, tmp_path / "links")) == 4
    assert why(one.opened.engine, uids(folder)[1])[0]["code"] is None


def test_revisions_that_retention_removed_come_again_one_after_the_other(tmp_path: Path, intake: Any) -> None:
    one = intake()
    folder, late = made_series(tmp_path / "a"), tmp_path / "late"
    late.mkdir()
    shutil.move(sorted(folder.iterdir())[-1], late / "slice")
    made = []
    for part in (folder, late):
        one.take(part)
        made += one.close()
    assert removed(one) == (1, 0)
    with pytest.raises(PacsError, match="INSTANCE_MISSING"):
        one.opened.storage.checkout(one.opened.engine, made[0], tmp_path / "none")
    for part in (folder, late):
        one.take(part)
        assert one.close() == []
    assert [len(one.rows(revision_instances, revision_id=revision)) for revision in made] == [3, 4]


def test_a_series_of_known_instances_under_another_uid_is_told_and_goes_with_time(tmp_path: Path, intake: Any) -> None:
    one = intake()
    folder = made_series(tmp_path / "a")
    one.take(folder)
    one.close()
    again = change(Path(shutil.copytree(folder, tmp_path / "again")), SeriesInstanceUID="1.2.3.4")
    assert one.take(again) == {"aside": 4}
    (told,) = why(one.opened.engine, "1.2.3.4")
    assert (told["code"], told["instances"], told["set_aside"]) == ("INSTANCE_CONFLICT", 0, 4)
    files = stored_files(one.opened.site)
    assert removed(one, days=29) == (0, 0)
    assert stored_files(one.opened.site) == files
    assert len(files) == 8
    assert removed(one) == (1, 0)
    assert (stored_files(one.opened.site), one.rows(asides)) == ([], [])


def test_a_receiver_that_died_blocks_nothing_for_ever(tmp_path: Path, intake: Any) -> None:
    one = intake()
    for file in sorted(made_series(tmp_path / "a").iterdir()):
        arrive(one.opened, one.registrar, file, association="of the dead")
    assert one.close() == []
    one.registrar = one.opened.registrar("test")  # the process began again
    assert len(one.close()) == 1


def test_registrars_of_other_processes_leave_each_others_associations_open(
    tmp_path: Path, intake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = intake()
    for file in sorted(made_series(tmp_path / "a").iterdir()):
        arrive(one.opened, one.registrar, file, association="of the first")
    monkeypatch.setattr("os.getpid", lambda: 1)
    one.opened.registrar("test")
    assert one.close() == []


def test_a_long_association_costs_no_memory(tmp_path: Path, intake: Any) -> None:
    one = intake()
    for second, file in enumerate(sorted(made_series(tmp_path / "a").iterdir())):
        one.registrar.register(arrival(one.opened, file, "long", at=1e9 + second))
    assert len(one.registrar._known) == 2  # itself, and its series
    assert [row.touched_at for row in one.rows(associations)] == [1e9 + 3]


def test_without_a_database_all_who_wait_are_told_at_once(tmp_path: Path, intake: Any) -> None:
    one = intake()
    files = sorted(made_series(tmp_path / "a").iterdir())
    group: list[tuple[Arrival | str, Future[Any]]] = [(arrival(one.opened, file), Future()) for file in files]
    tried = []

    def away(connection: Connection) -> None:
        tried.append(connection)
        raise OperationalError("BEGIN", None, Exception("the server closed the connection"))

    listen(one.opened.engine, "begin", away, insert=True)
    one.registrar._commit(group)
    assert len(tried) == 1
    assert [type(future.exception()) for _, future in group] == [OperationalError] * 4
    remove(one.opened.engine, "begin", away)
    assert one.registrar.register(arrival(one.opened, files[0])) == "new"


def test_a_slice_that_is_committed_while_its_series_closes_is_not_lost(
    tmp_path: Path, intake: Any, postgres: Postgres
) -> None:
    one = intake(with_judge=lambda judged, files: [], database=postgres.url)
    *files, late = sorted(made_series(tmp_path / "a").iterdir())
    for file in files:
        one.registrar.register(arrival(one.opened, file))
    found: list[str] = []
    closing = threading.Thread(target=lambda: found.extend(one.close()))
    with one.opened.engine.begin() as connection:
        record(connection, [arrival(one.opened, late)], one.opened.pseudonyms, "test", {})
        closing.start()
        waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        with one.opened.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            # In one transaction PostgreSQL would answer each time what it answered first.
            assert eventually(lambda: other.execute(waits).scalar())
    closing.join()
    assert found == []  # something came
    (made,) = one.close()
    assert len(one.rows(revision_instances, revision_id=made)) == 4
    assert len(one.rows(revisions)) == 1


def test_a_series_with_an_odd_error_keeps_no_other_open(
    tmp_path: Path, intake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    conflict = IntegrityError("INSERT", {}, Exception("the same key"))
    errors = iter((BundleError("BUNDLE_UNKNOWN", "gone."), KeyError("odd"), conflict))

    def odd(judged: Sequence[BundleRule], files: Path) -> list[Decision]:
        for error in errors:
            raise error
        return []

    one = intake(with_judge=odd)
    for seed in range(4):
        one.take(made_series(tmp_path / str(seed), seed=seed))
    assert len(one.close()) == 1
    told = [vars(record)["accunet_facts"] for record in caplog.records if record.msg == "series_not_closed"]
    assert [(facts["code"], facts["exception"]) for facts in told] == [
        ("BUNDLE_UNKNOWN", "BundleError"),
        ("INTERNAL", "KeyError"),
        ("INTERNAL", "IntegrityError"),
    ]
    assert len(one.close()) == 3


def test_the_closing_thread_outlives_an_odd_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def odd(*_: Any) -> None:
        looked.append(1)
        raise KeyError("odd")

    monkeypatch.setattr("accunet_monai.pacs.inbox.CLOSE_EVERY_SECONDS", 0.01)
    monkeypatch.setattr("accunet_monai.pacs.inbox.close_complete", odd)
    with OpenSite(plain_site(tmp_path)) as opened:
        inbox = Inbox(opened)
        inbox.start()
        assert eventually(lambda: len(looked) > 2)
        inbox.stop()


def test_the_count_of_the_pacs_is_waited_for_but_not_for_ever(tmp_path: Path, intake: Any) -> None:
    archive = [{"name": "archive", "dicomweb": {"url": "http://127.0.0.1:1/dicom-web"}}]
    site = plain_site(tmp_path / "site", pacs=archive)
    one = intake()
    waiting = site.model_copy(update={"bundles": one.opened.site.bundles})
    one.opened.site = waiting.model_copy(
        update={"completeness": waiting.completeness.model_copy(update={"quiet_seconds": 0, "count_from": "archive"})}
    )
    folder = made_series(tmp_path / "a")
    one.take(folder)
    asked: list[tuple[str, str]] = []

    def count(study: str, uid: str) -> int:
        asked.append((study, uid))
        return 5

    assert one.close(count) == one.close(count) == []
    assert asked == [uids(folder)]  # not again within half a minute
    (row,) = one.rows(series)
    assert (row.expected, row.complete_at) == (5, None)
    given_up = one.opened.site.completeness.model_copy(update={"count_wait_seconds": 1e-6})
    one.opened.site = one.opened.site.model_copy(update={"completeness": given_up})
    with one.opened.engine.begin() as connection:
        connection.execute(series.update().values(counted_at=0))
    assert len(one.close(count)) == 1


@pytest.mark.parametrize(
    ("tags", "files", "rule", "outcome"),
    [
        ({}, None, {"when": {"tag": "Modality", "equals": "CT"}}, ("not_chosen", "RULE_NOT_MET")),
        (
            {"BodyPartExamined": "KNEE"},
            [0],
            {"when": {"not": {"tag": "BodyPartExamined", "exists": True}}},
            ("ambiguous", "RULE_MIXED"),
        ),
        ({}, None, {"min_instances": 5}, ("not_chosen", "RULE_TOO_FEW")),
        ({"BurnedInAnnotation": "YES"}, [2], {}, ("refused", "BURNED_IN")),
        ({"BurnedInAnnotation": "YES"}, [2], {"allow_burned_in": True}, ("chosen", None)),
        ({"PixelSpacing": None}, None, {}, ("refused", "GEOM_NO_SPACING")),
        ({"ImagePositionPatient": [0, 0, 40]}, [3], {"planes": False}, ("refused", "GEOM_TILT")),
        ({"ImagePositionPatient": [0, 0, 40]}, [3], {"planes": True}, ("chosen", None)),
        ({"EchoTime": 90}, [0, 1], {}, ("ambiguous", "SERIES_AMBIGUOUS")),
    ],
)
def test_every_outcome_has_its_code(
    tags: dict[str, Any],
    files: list[int] | None,
    rule: dict[str, Any],
    outcome: tuple[str, str | None],
    tmp_path: Path,
    intake: Any,
) -> None:
    one = intake(**rule)
    one.take(change(made_series(tmp_path / "a"), files, **tags))
    assert len(one.close()) == 1
    assert one.decision() == outcome
    assert len(one.rows(jobs)) == (outcome[0] == "chosen")


def test_what_was_decided_is_told_without_the_instances_values(tmp_path: Path, intake: Any) -> None:
    canary = "CANARYVALUE"
    tests = [MR, {"tag": "SeriesDescription", "contains": "brain"}, {"tag": "PatientID", "exists": True}]
    one = intake(when={"all": tests})
    folder = made_series(tmp_path / "a")
    texts = dict.fromkeys(("SeriesDescription", "PatientID", "PatientName", "ProtocolName", "BodyPartExamined"), canary)
    change(folder, **texts)
    one.take(change(folder, [1], SeriesDescription=f"{canary} brain"))
    one.close()
    (told,) = why(one.opened.engine, uids(folder)[1])
    (decision,) = told["revisions"][0]["decisions"]
    met = [(test["depth"], test["test"], test["met"]) for test in decision["tests"]]
    assert met == [
        (0, "all of", 1),
        (1, "Modality equals 'MR'", 4),
        (1, "SeriesDescription contains 'brain'", 1),
        (1, "PatientID exists True", 4),
    ]
    assert (decision["outcome"], decision["code"]) == ("ambiguous", "RULE_MIXED")
    assert canary not in json.dumps(told)
    one.opened.engine.dispose()
    database = one.opened.site.storage.glob("state.sqlite3*")
    assert canary.encode() not in b"".join(file.read_bytes() for file in database)


def test_several_series_of_a_study_where_one_is_wanted_are_ambiguous(tmp_path: Path, intake: Any) -> None:
    one = intake(one_per_study=True)
    first, second = made_series(tmp_path / "a"), made_series(tmp_path / "b", seed=1)
    change(second, StudyInstanceUID=uids(first)[0])
    one.take(first)
    one.close()
    assert [row.state for row in one.rows(jobs)] == ["queued"]
    one.take(second)
    one.close()
    assert [(row.outcome, row.code) for row in one.rows(decisions)] == [("ambiguous", "RULE_SEVERAL_SERIES")] * 2
    assert [(row.state, row.code) for row in one.rows(jobs)] == [("cancelled", "RULE_SEVERAL_SERIES")]


def test_what_arrives_while_rules_are_judged_is_not_lost(tmp_path: Path, intake: Any, judge: Judge) -> None:
    folder, late = made_series(tmp_path / "a"), tmp_path / "late"
    late.mkdir()
    shutil.move(sorted(folder.iterdir())[0], late / "0.dcm")

    def slow(judged: Sequence[BundleRule], files: Path) -> list[Decision]:
        one.take(late)
        return judge(judged, files)

    one = intake(with_judge=slow)
    one.take(folder)
    assert one.close() == []
    one.judge = judge
    (made,) = one.close()
    assert len(one.rows(revision_instances, revision_id=made)) == 4
    assert [row.number for row in one.rows(revisions)] == [1]


def test_a_damaged_file_keeps_its_series_open_and_no_other(tmp_path: Path, intake: Any) -> None:
    one = intake()
    bad, good = made_series(tmp_path / "a"), made_series(tmp_path / "b", seed=1)
    one.take(bad)
    (site_file, *_) = (one.opened.site.storage / "instances").rglob("*.dcm")
    whole = site_file.read_bytes()
    site_file.write_bytes(whole[:-2])
    one.take(good)
    assert len(one.close()) == 1
    assert [row.series_uid for row in one.rows(revisions)] == [uids(good)[1]]
    one.take(bad)  # sent again
    assert len(one.close()) == 1
    assert site_file.read_bytes() == whole


def test_a_file_that_exhausts_the_judge_is_refused_and_the_next_is_judged(tmp_path: Path) -> None:
    folder, bomb = made_series(tmp_path / "a"), instance(1)
    bomb.PixelData = bytes(160 * 2**20)
    bomb.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save([bomb], tmp_path / "bomb")
    rule = BundleRule.model_validate({"bundle": "hippocampus_mri", "when": MR, "shadow": True})
    frugal = Judge(400 * 2**20)
    try:
        assert frugal([rule], tmp_path / "bomb") == [Decision("hippocampus_mri", "refused", "JUDGE_DIED", {})]
        assert frugal([rule], folder)[0].outcome == "chosen"
    finally:
        frugal.close()


def test_the_codes_are_those_of_batch_runs() -> None:
    assert rules.DAMAGED == sources.DAMAGED
    assert rules.NO_GRID == sources.NO_GRID


def test_an_inbox_closes_what_was_sent_when_its_association_has_ended(tmp_path: Path) -> None:
    rule = {"bundle": "hippocampus_mri", "when": {"tag": "Modality", "equals": "CT"}, "shadow": True}
    site = plain_site(tmp_path / "site", bundles=[rule], completeness={"quiet_seconds": 0.1})
    with OpenSite(site) as opened:
        inbox = Inbox(opened)
        inbox.start()

        def made() -> list[Any]:
            with reading(opened.engine) as connection:
                return list(connection.execute(select(revisions)).all())

        with RawPeer(inbox.receiver.port) as peer:
            assert [peer.store(instance(number)) for number in (1, 2)] == [0, 0]
            assert not eventually(made, 2.5)  # two looks of the closing thread
            peer.release()
        assert eventually(made, 60)
        inbox.stop()
        assert [row.number for row in made()] == [1]
