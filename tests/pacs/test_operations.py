"""A parent that looks after its children, what the queue forgets, and a bundle in shadow mode."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pydicom
import pytest
from safetensors.numpy import load_file, save_file
from sqlalchemy import delete, insert, select
from typer.testing import CliRunner

from accunet_monai.bundle import manifest_digest, write_manifest
from accunet_monai.cli import app
from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.decoding import Decoder
from accunet_monai.pacs.jobs import ENDED, counts
from accunet_monai.pacs.leases import Lease
from accunet_monai.pacs.queue import JobQueue
from accunet_monai.pacs.segmenting import Models
from accunet_monai.pacs.serving import Serving
from accunet_monai.pacs.settings import Web
from accunet_monai.pacs.shadow import compare_shadow
from accunet_monai.pacs.steps import Steps
from accunet_monai.pacs.tables import jobs, revision_instances
from accunet_monai.pacs.web import read_token
from accunet_monai.volumes import read_seg
from tests.pacs.processes import Process, wait_until, worker
from tests.pacs.servers import Orthanc
from tests.pacs.small import made_series, made_site, opened, received, to


def test_parts_that_end_are_started_again_and_all_end_with_the_parent(tmp_path: Path) -> None:
    site = made_site(tmp_path, bundle="hippocampus_mri")
    serving = Serving(tmp_path / "site.yaml", site, workers=2)
    assert [child.name for child in serving.children] == ["receive", "worker-1", "worker-2"]
    short, *long = serving.children
    short.command = [sys.executable, "-S", "-c", f"open({str(tmp_path / 'starts')!r}, 'a').write('x')"]
    short.pause = 0.01
    for child in long:
        child.command = ["sleep", "60"]
    thread = threading.Thread(target=serving.run)
    thread.start()
    wait_until(lambda: (tmp_path / "starts").exists() and len((tmp_path / "starts").read_text()) >= 3, 20)
    assert short.pause >= 0.04  # doubled each time
    processes = [child.process for child in long]
    assert all(process is not None and process.poll() is None for process in processes)
    serving.stop()
    thread.join(20)
    assert [process.returncode for process in processes if process] == [-signal.SIGTERM] * 2


def test_a_token_is_long_and_read_from_its_file(tmp_path: Path) -> None:
    web = Web(token_file=tmp_path / "token")
    for content in (None, "short"):
        if content is not None:
            web.token_file.write_text(content)
        with pytest.raises(PacsError, match="WEB_TOKEN"):
            read_token(web)
    web.token_file.write_text("0123456789abcdef\n")
    assert read_token(web) == "0123456789abcdef"


def test_a_bundle_in_shadow_mode_is_compared_and_not_delivered(
    tmp_path: Path, orthanc: Orthanc, tiny_verified_bundle: Path
) -> None:
    new = Path(shutil.copytree(tiny_verified_bundle, tmp_path / "new_bundle"))
    weights = load_file(new / "models" / "model.safetensors")
    weights["head.bias"] = weights["head.bias"] + np.array([0, 2, 0, 0], np.float32)
    save_file(weights, new / "models" / "model.safetensors")
    write_manifest(new)
    parts = to({"dimse": orthanc.dimse}, "dimse", tiny_verified_bundle)
    parts["bundles"] += [{"bundle": str(new), "when": {"tag": "Modality", "equals": "MR"}, "shadow": True}]
    site = made_site(tmp_path, bundle=tiny_verified_bundle, **parts)
    engine = opened(site)
    live = received(engine, site, made_series(tmp_path / "series", 700))
    with engine.begin() as connection:
        row = connection.execute(select(jobs)).one()._asdict()
        other = {"id": "shadow", "bundle": "new_bundle", "bundle_digest": manifest_digest(new), "shadow": 1}
        connection.execute(insert(jobs).values(**(row | other)))
    one = worker(site, tmp_path / "log")
    wait_until(lambda: sum(counts(engine).get(state, 0) for state in ENDED) == 2)
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    with reading(engine) as connection:
        found = {row.id: row for row in connection.execute(select(jobs))}
    assert {row.state for row in found.values()} == {"done"}
    assert len(orthanc.instances(SOPInstanceUID=found[live].seg_sop_uid)) == 1
    assert orthanc.instances(SOPInstanceUID=found["shadow"].seg_sop_uid) == []
    (comparison,) = compare_shadow(site, engine, "new_bundle")
    maps = [dense(site.storage / found[name].seg_file) for name in ("shadow", live)]
    assert comparison["differing"] == np.count_nonzero(maps[0] != maps[1]) > 0
    ours, theirs = (one == 1 for one in maps)
    assert comparison["dice"][1] == pytest.approx(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    assert (comparison["shadow_job"], comparison["live_job"]) == ("shadow", live)
    forgotten = Process(lambda: forget(tmp_path), tmp_path / "forget.log")
    assert forgotten.wait() == 0, (tmp_path / "forget.log").read_text()
    engine.dispose()


def test_pairs_that_cannot_be_compared_are_counted_and_keep_none_from_the_others(
    tmp_path: Path, tiny_verified_bundle: Path
) -> None:
    site = made_site(tmp_path, bundle=tiny_verified_bundle)
    engine, decoder = opened(site), Decoder(2**32)
    steps = Steps(site, engine, Lease(engine), Models(site), decoder)
    for seed in range(3):
        job = received(engine, site, made_series(tmp_path / str(seed), 710 + seed))
        assert steps.segment(job, 0) is None
        with engine.begin() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job)).one()._asdict()
            other = {"id": f"live{seed}", "bundle": "live", "shadow": 0}
            connection.execute(insert(jobs).values(**(row | other)))
            if seed == 2:  # the newest: as retention leaves it
                gone = revision_instances.c.revision_id == row["revision_id"]
                connection.execute(delete(revision_instances).where(gone))
        if seed == 1:
            (site.storage / row["seg_file"]).write_bytes(b"damaged")
    removed, damaged, compared = compare_shadow(site, engine, "copied_bundle")
    assert (removed["live_job"], removed["code"]) == ("live2", "INSTANCE_MISSING")
    assert (damaged["live_job"], damaged["code"]) == ("live1", "SEG_CHANGED")
    assert (compared["live_job"], compared["differing"]) == ("live0", 0)
    said = CliRunner().invoke(app, ["pacs", "shadow", str(tmp_path / "site.yaml"), "copied_bundle"])
    assert said.exit_code == 0
    first, *others = said.stdout.splitlines()
    assert "0 of 1024 voxels differ" in first
    assert others == ["not compared: 1 (INSTANCE_MISSING)", "not compared: 1 (SEG_CHANGED)"]
    decoder.close()
    engine.dispose()


def dense(file: Path) -> np.ndarray:
    """(X, Y, 4) labels, by the positions of the frames alone."""
    seg = read_seg(file)
    result = np.zeros((16, 16, 4), int)
    for k, affine in enumerate(seg.affines_ras):
        result[:, :, round((affine[2, 3] - 11) / 1.2)] = seg.label_map[:, :, k]
    assert pydicom.dcmread(file, stop_before_pixels=True).Modality == "SEG"
    return result


def forget(folder: Path) -> None:
    """In a process of its own: what is over is forgotten when it is old, and not before."""
    from accunet_monai.pacs.settings import read_site

    site = read_site(folder / "site.yaml")
    engine = opened(site)
    lease = Lease(engine)
    queue = JobQueue(site.database_url, lease.executor_id, Steps(site, engine, lease, Models(site), Decoder(2**32)))
    queue.launch()
    found = [queue.forget(1), queue.forget(-1), queue.forget(-1)]
    queue.stop(1)
    if found != [0, 2, 0]:
        raise ValueError(found)


def test_pixels_are_decoded_in_a_process_of_limited_memory(tmp_path: Path) -> None:
    series = made_series(tmp_path / "series", 1)
    enough, little = Decoder(2**32), Decoder(2**28)
    try:
        enough.check(series, True)
        with pytest.raises(PacsError, match="DECODER_DIED"):
            little.check(series, True)
        for file in series.iterdir():
            ds = pydicom.dcmread(file)
            ds.PixelData = ds.PixelData[:-10]
            ds.save_as(file)
        with pytest.raises(PacsError, match="PIXEL_TRUNCATED"):
            enough.check(series, True)
    finally:
        enough.close()
        little.close()


def test_the_commands_tell_and_change_what_they_say(tmp_path: Path) -> None:
    site = made_site(tmp_path, bundle="hippocampus_mri")
    engine = opened(site)
    job = received(engine, site, made_series(tmp_path / "series", 1))
    file = str(tmp_path / "site.yaml")

    def said(*words: str) -> str:
        result = CliRunner().invoke(app, ["pacs", *words])
        return result.stdout if result.exit_code == 0 else result.stderr

    assert json.loads(said("status", file, "--json"))["jobs"] == {"queued": 1}
    said("cancel", file, job[:8])
    assert [row["state"] for row in json.loads(said("status", file, "--jobs", "--json"))] == ["cancelled"]
    assert "JOB_STATE" in said("cancel", file, job[:8])
    said("retry", file, job[:8])
    (row,) = json.loads(said("status", file, "--state", "queued", "--json"))
    assert (row["id"], row["attempts"]) == (job, 1)  # another attempt, which the queue does not know yet
    head = json.loads(said("audit", "verify", file, "--json"))
    assert head["entries"] == 2
    assert "AUDIT_CUT" in said("audit", "verify", file, "--head", "0" * 63 + "1")
    assert "JOB_UNKNOWN" in said("retry", file, "nothing")
    assert "TRACE_UNKNOWN" in said("trace", file, "1.2.3")
    assert "JOB_STATE" in said("replay", file, job[:8])
    assert json.loads(said("shadow", file, "hippocampus_mri", "--json")) == []
    assert said("drain", file).startswith("drained")
    assert json.loads(said("status", file, "--json"))["draining"]
    assert "WEB_NOT_CONFIGURED" in said("web", file)
    engine.dispose()
