"""The cache gives what preprocessing gives, makes it once, and makes it again when anything that matters differs."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.transforms import Compose, NormalizeIntensityd, ScaleIntensityd

from accunet_monai.errors import DatasetError
from accunet_monai.training import SliceDataset
from accunet_monai.training.cache import VolumeCache
from accunet_monai.training.settings_key import describe, settings_key
from accunet_monai.training.slices import Pick
from accunet_monai.transforms import LoadLabelMapd, LoadVolumed

CALLS: list[str] = []
LOAD = Compose([LoadVolumed("image"), LoadLabelMapd("label")])
LONG_AGO = time.time() - 1000


def counted(case: dict[str, Any]) -> Any:
    """Loads a case and remembers that it did; the memory is a global, which is no setting."""
    CALLS.append(case["case"])
    return LOAD(case)


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, str]]:
    """Three random volumes with two labels, of different sizes, written long ago."""
    random = np.random.default_rng(0)
    made = []
    for number in range(3):
        shape = (5 + number, 6, 7)
        case = {"case": f"case_{number}", "subject": f"case_{number}"}
        for key, array in (("image", random.normal(size=shape).astype("f4")), ("label", random.integers(0, 3, shape))):
            path = tmp_path / "data" / f"{key}_{number}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array.astype("u1" if key == "label" else "f4"), np.eye(4)), path)
            os.utime(path, (LONG_AGO, LONG_AGO))
            case[key] = str(path)
        made.append(case)
    CALLS.clear()
    return made


def data_of(cases: list[dict[str, str]], folder: Path | None, preprocessing: Any = counted) -> SliceDataset:
    return SliceDataset(
        cases, preprocessing, (5, 6, 9), [0, 2], context_slices=1, progress=False, seed=3, cache_dir=folder
    )


def assert_same(one: SliceDataset, other: SliceDataset) -> None:
    assert len(one) == len(other) > 0
    for index in range(len(one)):
        assert one.labels(index) == other.labels(index)
        assert one.spatial_dim(index) == other.spatial_dim(index)
        first, second = one[Pick(index, 7)], other[Pick(index, 7)]
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["label"], second["label"])


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "files")


def test_slices_from_the_cache_are_those_from_memory_and_are_made_once(cases: Any, tmp_path: Path) -> None:
    held = data_of(cases, None)
    CALLS.clear()
    assert_same(data_of(cases, tmp_path / "cache"), held)
    assert sorted(CALLS) == ["case_0", "case_1", "case_2"]
    assert_same(data_of(cases[::-1], tmp_path / "cache"), data_of(cases[::-1], None, LOAD))
    assert len(CALLS) == 3


def test_files_are_read_again_only_when_their_time_stamps_change(cases: Any, tmp_path: Path) -> None:
    data_of(cases, tmp_path / "cache")
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "data", moved)
    elsewhere = [
        {key: value.replace("/data/", "/moved/").replace("case", "other") for key, value in case.items()}
        for case in cases
    ]
    data_of(elsewhere, tmp_path / "cache")  # the same bytes under other names
    assert len(CALLS) == 3
    array = np.asarray(nib.load(cases[1]["image"]).dataobj) + 1
    nib.save(nib.Nifti1Image(array, np.eye(4)), cases[1]["image"])
    assert_same(data_of(cases, tmp_path / "cache"), data_of(cases, None, LOAD))
    assert CALLS[3:] == ["case_1"]


@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
def test_voxels_beside_their_header_are_looked_at_too(cases: Any, tmp_path: Path, ending: str) -> None:
    array = np.arange(5 * 6 * 7, dtype=np.float32).reshape(7, 6, 5)
    image = tmp_path / "data" / f"image.{ending}"
    cases[0]["image"] = str(image)
    for shift in (0, 1):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array + shift), image)
        for path in image.parent.glob("image.*"):
            os.utime(path, (LONG_AGO + shift, LONG_AGO + shift))
        os.utime(image, (LONG_AGO, LONG_AGO))  # the header stays as it was to the byte
        for _ in range(2):
            assert_same(data_of(cases[:1], tmp_path / "cache"), data_of(cases[:1], None))
    assert len(entries(tmp_path / "cache")) == 2


def test_other_settings_give_another_entry(cases: Any, tmp_path: Path) -> None:
    for factor in (0.5, 2.0, 0.5):
        scaled = Compose([LOAD, ScaleIntensityd("image", minv=None, maxv=None, factor=factor)])
        assert_same(data_of(cases[:1], tmp_path / "cache", scaled), data_of(cases[:1], None, scaled))
    assert len(entries(tmp_path / "cache")) == 2
    SliceDataset(cases[:1], LOAD, (5, 6), 2, progress=False, cache_dir=tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 3  # another axis


def flip_a_bit(folder: Path) -> None:
    path = folder / "image_0.npy"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.unlink()
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "entry.json").unlink(),
        lambda folder: (folder / "entry.json").write_text("{"),
        lambda folder: (folder / "entry.json").write_text("[]"),
        lambda folder: (folder / "label_2.npy").unlink(),
        lambda folder: os.truncate(folder / "image_2.npy", 200),
        lambda folder: os.truncate(folder / "counts_0.npy", 0),
        flip_a_bit,
        shutil.rmtree,
    ],
)
def test_a_damaged_entry_is_made_again(cases: Any, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    cache = tmp_path / "cache"
    data_of(cases, cache)
    victim = entries(cache)[1]
    damage(victim)
    (cache / f".{victim.name}.killed.partial").mkdir()  # what a killed process leaves
    assert_same(data_of(cases, cache), data_of(cases, None, LOAD))
    assert len(CALLS) == 4
    assert len(entries(cache)) == 3


def test_an_entry_copied_to_another_disk_is_still_whole(cases: Any, tmp_path: Path) -> None:
    data_of(cases, tmp_path / "cache")
    shutil.copytree(tmp_path / "cache", tmp_path / "copy", copy_function=shutil.copyfile)
    data_of(cases, tmp_path / "copy")
    assert len(CALLS) == 3


def noted(case: dict[str, Any]) -> Any:
    """Notes who made what, and goes on only when both processes have begun; alone that would take 20 s a case."""
    note = Path(case["label"]).parent / "made.txt"
    with note.open("a") as file:
        file.write(f"{os.getpid()} {case['case']}\n")
    give_up = time.monotonic() + 20
    while len({line.split()[0] for line in note.read_text().splitlines()}) < 2 and time.monotonic() < give_up:
        time.sleep(0.01)
    return LOAD(case)


def test_two_processes_that_start_together_share_the_work(cases: Any, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=data_of, args=(cases, tmp_path / "cache", noted)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    made = [line.split() for line in (tmp_path / "data" / "made.txt").read_text().splitlines()]
    assert sorted(case for _, case in made) == ["case_0", "case_1", "case_2"]
    assert len({process for process, _ in made}) == 2
    assert_same(data_of(cases, tmp_path / "cache", noted), data_of(cases, None, LOAD))
    assert len((tmp_path / "data" / "made.txt").read_text().splitlines()) == 3


def killed(case: dict[str, Any]) -> Any:
    if os.environ.get("KILL_ME") == case["case"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return LOAD(case)


def test_a_killed_process_blocks_nobody_and_its_work_stays(
    cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILL_ME", "case_1")
    context = multiprocessing.get_context("fork")
    process = context.Process(target=data_of, args=(cases, tmp_path / "cache", killed))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(entries(tmp_path / "cache")) == 1
    monkeypatch.delenv("KILL_ME")
    assert_same(data_of(cases, tmp_path / "cache", killed), data_of(cases, None, LOAD))


def test_what_fails_leaves_no_entry(cases: Any, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), "u1"), np.eye(4)), cases[1]["label"])
    with pytest.raises(DatasetError, match=r"\(6, 6, 7\) and \(2, 2, 2\)"):
        data_of(cases, tmp_path / "cache")
    assert not list(tmp_path.glob("cache/.*partial"))
    assert len(entries(tmp_path / "cache")) == 1


def test_volumes_beyond_the_open_files_of_a_process(cases: Any, tmp_path: Path) -> None:
    cache = VolumeCache(tmp_path / "cache", LOAD, [0])
    volumes = cache.volumes(cases) * 600
    for number in range(1200):  # more names than descriptors: entries are linked under many names
        copy = tmp_path / "cache" / f"copy_{number}"
        copy.symlink_to(volumes[number].folder)
        type(volumes[0])(copy).planes(0)
    assert len(list(Path("/proc/self/fd").iterdir())) < 600


def test_settings_are_told_apart_and_equal_ones_are_equal() -> None:
    def made(**options: Any) -> Any:
        return Compose([NormalizeIntensityd("image", **options)])

    assert settings_key(made()) == settings_key(made())
    assert settings_key(made()) != settings_key(made(nonzero=True))
    used = made()
    used({"image": torch.rand(1, 4, 4)})
    used.set_random_state(3)
    assert json.dumps(describe(used)) == json.dumps(describe(made().set_random_state(4)))
    assert describe(lambda x: x + 1) != describe(lambda x: x + 2)
    shift = [1, 2]
    one, other = (lambda x, by=by: x + by for by in shift)
    assert describe(one) != describe(other)
    circle: list[Any] = []
    circle.append(circle)
    assert describe(circle) == ["itself"]
    with pytest.raises(DatasetError) as caught:
        describe(object())
    assert caught.value.code == "CACHE_SETTINGS"
