"""What ``make chaos`` judges by: a site that ran undisturbed is in order, and every kind of damage is found."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from sqlalchemy import select, update

from accunet_monai.pacs.database import make_engine, reading
from accunet_monai.pacs.tables import jobs
from tests.pacs import chaos


@pytest.mark.usefixtures("orthanc", "postgres")  # for their reasons to skip
def test_the_judge_finds_what_is_lost_doubled_and_damaged(tmp_path: Path) -> None:
    with chaos.theatre(3, **chaos.QUICK) as it:
        for name in ("receiver", "worker 1", "sender"):
            it.start(name)
        engine = make_engine(it.postgres.url)
        assert chaos.patiently(engine, chaos.all_ended(it), 60)
        assert chaos.judge(it, engine).line == "lost 0 duplicate 0 partial 0"
        assert sum(chaos.judge(it, engine).states.values()) == 3
        with reading(engine) as connection:
            rows = list(connection.execute(select(jobs).order_by(jobs.c.id)))
        gone, changed = (it.orthanc.instances(SOPInstanceUID=row.seg_sop_uid)[0] for row in rows[:2])
        doubled = it.orthanc.dataset(changed)
        doubled.SOPInstanceUID = doubled.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        doubled.save_as(tmp_path / "doubled.dcm")
        it.orthanc.post("/instances", (tmp_path / "doubled.dcm").read_bytes())
        assert chaos.judge(it, engine).duplicate == 1
        it.orthanc.delete(gone)
        stored = it.site.storage / rows[1].seg_file
        other = pydicom.dcmread(stored)
        other.PixelData = bytes(len(other.PixelData))
        other.save_as(stored)
        found = chaos.judge(it, engine)
        assert (found.lost, found.duplicate, found.partial) == (1, 1, 2)  # the doubled is nobody's either
        with engine.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == rows[2].id).values(state="cancelled"))
        assert chaos.judge(it, engine).lost == 2  # what has no job that came to its end is lost, too
        engine.dispose()
