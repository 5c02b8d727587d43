"""Bundles out of zip files: as they went in, or not at all."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

import pytest

from accunet_monai.bundle import archive as archive_module
from accunet_monai.bundle import find_bundle, unpack_bundle, verify_bundle, write_manifest
from accunet_monai.errors import BundleError
from tests import made_bundle

Entries = dict[str, bytes]
METADATA = "configs/metadata.json"


def zipped(path: Path, entries: Entries, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # also what ZipInfo would have made harmless
            info.compress_type = method
            archive.writestr(info, content)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


def refused(archive: Path, target: Path) -> str:
    """The code of the refusal, after which nothing is left."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(BundleError) as caught:
        unpack_bundle(archive, target)
    assert [path for path in sorted(archive.parent.rglob("*")) if path not in before and path != target.parent] == []
    return caught.value.code


@pytest.mark.parametrize("top", ["", "a_bundle/"])
def test_a_bundle_comes_out_as_it_went_in(top: str, target: Path, tmp_path: Path) -> None:
    bundle = made_bundle.copied_bundle(find_bundle("hippocampus_mri"), tmp_path)
    write_manifest(bundle)
    files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    archive = zipped(tmp_path / "a.zip", {f"{top}{name}": content for name, content in files.items()})
    assert unpack_bundle(archive, target) == target
    assert verify_bundle(target) == verify_bundle(bundle)
    assert {path.relative_to(target) for path in target.rglob("*")} == {
        path.relative_to(bundle) for path in bundle.rglob("*")
    }
    assert refused(archive, target) == "OUTPUT_TAKEN"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/evil",
        "//evil",
        "C:/evil",
        "C:evil",
        "..\\evil",
        "a\x1b[2J",
        "CONFIGS/metadata.json",
    ],
)
def test_entries_that_lead_out_or_stand_twice(name: str, target: Path, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "evil.zip", {METADATA: b"{}", name: b"x"})
    assert refused(archive, target) == "ARCHIVE_ENTRY"


def test_such_archives_are_no_duds(target: Path, tmp_path: Path) -> None:
    """Who joins a folder and an entry's name writes outside of the folder."""
    archive = zipped(tmp_path / "evil.zip", {METADATA: b"{}", "../evil": b"x"})
    target.mkdir(parents=True)
    with zipfile.ZipFile(archive) as source:
        (target / "../evil").write_bytes(source.read("../evil"))
    assert (tmp_path / "out" / "evil").read_bytes() == b"x"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(kind: int, target: Path, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "evil.zip", {METADATA: b"{}"})
    with zipfile.ZipFile(archive, "a") as out:
        info = zipfile.ZipInfo("configs/link")
        info.external_attr = (kind | 0o777) << 16
        out.writestr(info, "/etc/passwd")
    assert refused(archive, target) == "ARCHIVE_ENTRY"


def test_encrypted_entries_and_odd_compression(target: Path, tmp_path: Path) -> None:
    assert refused(zipped(tmp_path / "odd.zip", {METADATA: b"{}"}, zipfile.ZIP_LZMA), target) == "ARCHIVE_ENTRY"
    archive = zipped(tmp_path / "locked.zip", {METADATA: b"{}"})
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # the flag of the central directory
    archive.write_bytes(content)
    assert refused(archive, target) == "ARCHIVE_ENTRY"


def test_bombs(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = zipped(tmp_path / "bomb.zip", {METADATA: b"{}", "models/zeros": bytes(20_000_000)})
    assert padding.stat().st_size < 30_000
    assert refused(padding, target) == "ARCHIVE_TOO_LARGE"
    many = zipped(tmp_path / "many.zip", {METADATA: b"{}"} | {f"docs/{n}": b"" for n in range(1001)})
    assert refused(many, target) == "ARCHIVE_TOO_LARGE"
    monkeypatch.setattr(archive_module, "MAX_FILE_BYTES", 1000)
    large = zipped(tmp_path / "large.zip", {METADATA: b"{}", "a": bytes(600), "b": bytes(600)})
    assert refused(large, target) == "ARCHIVE_TOO_LARGE"


def test_a_size_that_lies_writes_no_more_than_it_says(target: Path, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "liar.zip", {METADATA: b"{}", "models/zeros": bytes(20_000_000)})
    content = bytearray(archive.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    struct.pack_into("<I", content, entry + 24, 10)  # the uncompressed size
    archive.write_bytes(content)
    assert refused(archive, target) == "ARCHIVE_UNREADABLE"


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({"a": b"", "a/b": b"", METADATA: b"{}"}, "ARCHIVE_UNREADABLE"),  # a file and a folder
        ({"notes.txt": b"x"}, "BUNDLE_INVALID"),
        ({f"a/{METADATA}": b"{}", f"b/{METADATA}": b"{}"}, "BUNDLE_INVALID"),
        ({f"a/{METADATA}": b"{}", "beside": b""}, "BUNDLE_INVALID"),
        ({f"a/b/c/{METADATA}": b"{}"}, "BUNDLE_INVALID"),
    ],
    ids=["file and folder", "no bundle", "two bundles", "something beside", "too deep"],
)
def test_what_is_no_bundle(entries: Entries, code: str, target: Path, tmp_path: Path) -> None:
    assert refused(zipped(tmp_path / "a.zip", entries), target) == code


def test_damaged_and_missing_archives(target: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "none.zip", target) == "ARCHIVE_UNREADABLE"
    (tmp_path / "text.zip").write_text("PK no zip file")
    assert refused(tmp_path / "text.zip", target) == "ARCHIVE_UNREADABLE"
    archive = zipped(tmp_path / "damaged.zip", {METADATA: b"{}" * 100, "b": bytes(range(256))}, zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    content[content.index(b"{}{}") + 10] ^= 1
    archive.write_bytes(content)
    assert refused(archive, target) == "ARCHIVE_UNREADABLE"
