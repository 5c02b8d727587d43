"""Runs that are stopped and started again: what is done is not done twice, what is not done or changed is."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from accunet_monai.batch import BatchReport, Records, predict_files
from accunet_monai.bundle import Predictor, Work, load_bundle
from accunet_monai.networks.checkpoint import load_network, save_network
from accunet_monai.volumes import read_label_map
from tests.batch.tiny import broken_images, images, tiny_bundle

CONTRACT: dict[str, Any] = {"breaches": [], "ignored": False}
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = int(os.environ.get("ACCUNET_EXAMPLES", "60"))
CASES, KILLS = (50, 4) if EXAMPLES > 60 else (12, 1)
"""Images of the killed run, three of them broken, and how often it is killed."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that the network sees."""
    seen: list[str] = []
    infer = Predictor.infer

    def watched(self: Predictor, work: Work, **options: Any) -> Work:
        seen.append(Path(work.image.provenance["path"]).name.split(".")[0])  # type: ignore[union-attr]
        return infer(self, work, **options)

    monkeypatch.setattr(Predictor, "infer", watched)
    return seen


def run(source: Path, bundle: Path, output: Path, **options: Any) -> BatchReport:
    return predict_files(source, bundle, output, device="cpu", console=Console(quiet=True), **options)


def test_a_second_run_does_nothing_and_says_so(bundle: Path, tmp_path: Path, computed: list[str]) -> None:
    images(tmp_path / "in", 3)
    first = run(tmp_path / "in", bundle, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_seg*")}
    assert len(computed) == len(first.written) == 3
    second = run(tmp_path / "in", bundle, tmp_path / "out")
    assert len(computed) == 3
    assert second.skipped == first.written
    assert not second.written
    assert not second.failed
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_seg*")}
    stated = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert [result["status"] for result in stated["results"]] == ["skipped"] * 3
    run(tmp_path / "in", bundle, tmp_path / "out", overwrite=True)
    assert len(computed) == 6


def test_what_a_killed_run_left_beside_a_whole_result_goes(bundle: Path, tmp_path: Path, computed: list[str]) -> None:
    images(tmp_path / "in", 1)
    first = run(tmp_path / "in", bundle, tmp_path / "out")
    name = next(iter(first.written.values())).name.partition("_seg")[0]
    left = tmp_path / "out" / f".{name}.partial"
    left.mkdir()
    (left / "x").write_bytes(b"half")
    assert run(tmp_path / "in", bundle, tmp_path / "out").skipped == first.written
    assert len(computed) == 1
    assert not left.exists()


def test_content_decides_and_not_place_or_time(bundle: Path, tmp_path: Path, computed: list[str]) -> None:
    first, second, third = images(tmp_path / "in", 3)
    run(tmp_path / "in", bundle, tmp_path / "out")
    os.utime(first, (time.time() + 100, time.time() + 100))
    shutil.copytree(tmp_path / "in", tmp_path / "moved")
    run(tmp_path / "moved", bundle, tmp_path / "out")
    assert len(computed) == 3
    stat = second.stat()
    shutil.copyfile(third, second)  # other content, same name and time
    os.utime(second, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    report = run(tmp_path / "in", bundle, tmp_path / "out")
    assert computed[3:] == ["case_01"]
    expected = load_bundle(bundle).predict(third).label_map
    np.testing.assert_array_equal(read_label_map(report.written[second]).array, expected)
    first.rename(tmp_path / "in" / "other.nii.gz")  # its result needs another name
    assert [path.name for path in run(tmp_path / "in", bundle, tmp_path / "out").written.values()] == [
        "other_seg.nii.gz"
    ]


def test_changed_and_missing_results_are_made_again(bundle: Path, tmp_path: Path, computed: list[str]) -> None:
    images(tmp_path / "in", 4)
    report = run(tmp_path / "in", bundle, tmp_path / "out", overlay=True)
    expected = {path: read_label_map(path).array for path in report.written.values()}
    changed, deleted, record, picture = sorted(expected)
    content = bytearray(gzip.decompress(changed.read_bytes()))
    content[-1] ^= 1
    changed.write_bytes(gzip.compress(bytes(content)))
    deleted.unlink()
    (tmp_path / "out" / record.name.replace(".nii.gz", ".json")).write_text("{", encoding="utf-8")
    (tmp_path / "out" / picture.name.replace("_seg.nii.gz", "_overlay.png")).write_bytes(b"")
    run(tmp_path / "in", bundle, tmp_path / "out", overlay=True)
    assert sorted(computed[4:]) == ["case_00", "case_01", "case_02", "case_03"]
    for path, array in expected.items():
        np.testing.assert_array_equal(read_label_map(path).array, array)
    run(tmp_path / "in", bundle, tmp_path / "out")  # asks for less
    assert len(computed) == 8
    run(tmp_path / "in", bundle, tmp_path / "out", measures=True)  # and for more
    assert len(computed) == 12


def test_another_model_means_everything_again(bundle: Path, tmp_path: Path, computed: list[str]) -> None:
    images(tmp_path / "in", 2)
    run(tmp_path / "in", bundle, tmp_path / "out")
    network = load_network(bundle / "models" / "model.safetensors")
    network.head.bias.data[0] += 1
    other = save_network(network, tmp_path / "other.safetensors")
    run(tmp_path / "in", bundle, tmp_path / "out", weights=other)
    run(tmp_path / "in", bundle, tmp_path / "out", weights=other)
    assert len(computed) == 4
    same = tmp_path / "same.safetensors"
    shutil.copyfile(other, same)
    run(tmp_path / "in", bundle, tmp_path / "out", weights=same)
    assert len(computed) == 4  # its content is the same
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    config = copy / "configs" / "inference.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("upper: 99.5", "upper: 98.0"), encoding="utf-8")
    run(tmp_path / "in", copy, tmp_path / "out", weights=same)
    assert len(computed) == 6


def test_no_result_is_ever_in_place_without_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each rename, which is where a kill would leave things: what is in place is known, or is not in place."""
    folder = tmp_path / "out"
    replace = Path.replace
    seen: list[tuple[str, bool, bool]] = []
    facts = {
        "source": "a.nii", "title": "a.nii", "input_sha256": "1", "model_sha256": "2", "options": {},
        "contract": CONTRACT,
    }  # fmt: skip

    def watched(path: Path, target: Path) -> Path:
        done = Records(folder).find_done("a.nii", "1", "2", {}, {"label_map", "overlay"}) is not None
        seen.append((Path(target).name, (folder / "a_seg.nii").exists(), done))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    writers = {
        "label_map": ("a_seg.nii", lambda path: path.write_bytes(b"labels")),
        "overlay": ("a_overlay.png", lambda path: path.write_bytes(b"picture")),
    }
    Records(folder).write("a", writers, facts)
    assert seen == [
        ("a_seg.json", False, False),
        ("a_overlay.png", False, False),
        ("a_seg.nii", False, False),
    ]
    assert Records(folder).find_done("a.nii", "1", "2", {}, {"label_map", "overlay"}) is not None
    assert sorted(path.name for path in folder.iterdir()) == ["a_overlay.png", "a_seg.json", "a_seg.nii"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "accunet-monai prediction, 1"}', "\xff", '{"format": "other"}']
)
def test_what_is_no_record_is_passed_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "a_seg.json").write_text(text, encoding="latin-1")
    assert Records(tmp_path).find_done("a.nii", "1", "2", {}, {"label_map"}) is None


def test_a_record_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    facts = {"source": "a", "title": "a", "input_sha256": "1", "model_sha256": "2", "options": {}, "contract": CONTRACT}
    Records(folder).write("a", {"label_map": ("a_seg.nii", lambda path: path.write_bytes(b"x"))}, facts)
    (folder / "a_seg.nii").rename(tmp_path / "a_seg.nii")
    record = folder / "a_seg.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"a_seg.nii"', '"../a_seg.nii"'), encoding="utf-8")
    assert Records(folder).find_done("a", "1", "2", {}, {"label_map"}) is None


PROGRAM = """
import sys
from pathlib import Path
from rich.console import Console
from accunet_monai.batch import predict_files
from accunet_monai.bundle import Predictor

infer = Predictor.infer
def watched(self, work, **options):
    with open(sys.argv[4], "a") as log:
        log.write(Path(work.image.provenance["path"]).name + "\\n")
    return infer(self, work, **options)
Predictor.infer = watched
predict_files(*sys.argv[1:4], device="cpu", console=Console(quiet=True))
"""


def test_killed_at_any_moment_and_started_again(bundle: Path, tmp_path: Path) -> None:
    """All right in the end, the broken ones reported, and nothing computed again that was in its place at the kill."""
    source, output, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    good = images(source, CASES - 3)
    broken = broken_images(source)
    chance = random.Random(0)
    command = [sys.executable, "-c", PROGRAM, str(source), str(bundle), str(output), str(log)]
    written: list[set[str]] = []
    for kill in range(KILLS):
        enough = (kill + 1) * len(good) // (KILLS + 1)
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        while len(in_place(output)) < enough and process.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was faster than the test"
        written.append(in_place(output))
        assert written[-1] >= (written[-2] if kill else set())
        for name in written[-1]:
            read_label_map(output / name)  # whole
    before = log.read_text(encoding="utf-8").splitlines()
    process = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)  # type: ignore[assignment]
    assert process.returncode == 0
    after = log.read_text(encoding="utf-8").splitlines()[len(before) :]
    done = {name.replace("_seg", "") for name in written[-1]}
    assert done
    assert set(after) == {path.name for path in good} - done
    assert len(after) == len(set(after))
    predictor = load_bundle(bundle)
    for path in good:
        found = read_label_map(output / path.name.replace(".nii.gz", "_seg.nii.gz")).array
        np.testing.assert_array_equal(found, predictor.predict(path).label_map)
    results = json.loads((output / "predictions.json").read_text(encoding="utf-8"))["results"]
    assert {result["source"] for result in results if result["status"] == "failed"} == set(map(str, broken))
    assert len(results) == CASES
    assert not [path for path in output.iterdir() if path.name.endswith(".partial")]


def in_place(output: Path) -> set[str]:
    return {path.name for path in output.glob("*_seg.nii.gz")}
