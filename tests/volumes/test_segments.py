"""segments.yaml: what ships is right, what is wrong is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom.sr import _concepts_dict as dicom_codes

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.segments import AlgorithmInfo, CodedTerm, SegmentTable, read_segments

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "bundles").glob("*/configs/segments.yaml"))


def document() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(SHIPPED[0].read_text(encoding="utf-8"))
    return content


def refused(tmp_path: Path, content: Any) -> VolumeError:
    path = tmp_path / "segments.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(VolumeError) as caught:
        read_segments(path)
    assert caught.value.code == "SEGMENTS_INVALID"
    assert caught.value.path == str(path)
    return caught.value


def test_every_bundle_has_one() -> None:
    assert [path.parents[1].name for path in SHIPPED] == [
        path.parents[1].name for path in sorted((ROOT / "bundles").glob("*/configs/metadata.json"))
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parents[1].name)
def test_a_shipped_file_agrees_with_its_bundle(path: Path) -> None:
    metadata = json.loads(path.with_name("metadata.json").read_text(encoding="utf-8"))
    table = read_segments(path)
    assert (table.algorithm.name, table.algorithm.version) == (metadata["name"], metadata["version"])
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert len(table.segments) == len(channels) - 1
    for segment in table.segments:
        assert set(segment.name.lower().split()) == set(channels[str(segment.label)].lower().split())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parents[1].name)
def test_a_shipped_code_is_in_the_standards_context_groups(path: Path) -> None:
    for segment in read_segments(path).segments:
        assert 7150 in context_groups(segment.category)
        assert 7151 in context_groups(segment.type)
        if segment.modifier:
            assert 2 in context_groups(segment.modifier)  # anatomic modifiers


def context_groups(term: CodedTerm) -> set[int]:
    """The context groups of PS3.16 that have this code with this meaning, by pydicom's copy of the standard."""
    found: set[int] = set()
    for codes in dicom_codes.concepts[term.scheme].values():
        for code, (meaning, groups) in codes.items():
            if code == term.code and meaning == term.meaning:
                found.update(groups)
    return found


def test_hippocampus_parts_are_the_hippocampus_with_a_modifier() -> None:
    table = read_segments(ROOT / "bundles/hippocampus_mri/configs/segments.yaml")
    assert [(s.label, s.type.code, s.modifier.code if s.modifier else None) for s in table.segments] == [
        (1, "5366008", "255549009"),
        (2, "5366008", "255551008"),
    ]


def test_unknown_and_missing_keys_are_refused(tmp_path: Path) -> None:
    content = document()
    content["extra"] = 1
    assert "unknown keys: extra" in refused(tmp_path, content).message
    content = document()
    content["segments"][0]["color"] = [1, 2, 3]
    assert "unknown keys: color" in refused(tmp_path, content).message
    content = document()
    del content["segments"][1]["type"]
    assert "lacks type" in refused(tmp_path, content).message
    content = document()
    content["segments"][0]["type"]["code_meaning"] = "Brain"
    assert "unknown keys: code_meaning" in refused(tmp_path, content).message


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("label",), 0),
        (("label",), 7),
        (("label",), "1"),
        (("label",), True),
        (("name",), "Grün"),
        (("name",), ""),
        (("name",), "a\\b"),
        (("name",), "x" * 65),
        (("colour",), [1, 2]),
        (("colour",), [1, 2, 256]),
        (("colour",), [1, 2, 0.5]),
        (("colour",), "red"),
        (("type",), "Brain"),
        (("type", "code"), 12738006),
        (("type", "code"), "12345678901234567"),
        (("category", "scheme"), None),
    ],
)
def test_a_wrong_value_is_refused(tmp_path: Path, place: tuple[str, ...], value: Any) -> None:
    content = document()
    target = content["segments"][0]
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    refused(tmp_path, content)


@pytest.mark.parametrize("content", ["", "- 1\n", "a: [", "algorithm: x\nsegments: []\n", "\x00"])
def test_what_is_no_segments_file_is_refused(tmp_path: Path, content: str) -> None:
    refused(tmp_path, content)


def test_no_segments_are_refused(tmp_path: Path) -> None:
    content = document()
    content["segments"] = []
    assert "without gaps, found []" in refused(tmp_path, content).message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError) as caught:
        read_segments(tmp_path / "none.yaml")
    assert caught.value.code == "FILE_MISSING"


def test_a_digest_must_be_one() -> None:
    with pytest.raises(VolumeError, match="64 lower-case hexadecimal"):
        AlgorithmInfo("name", "1", weights_sha256="abc")
    assert AlgorithmInfo("name", "1", config_sha256="0" * 64).digests == {"config_sha256": "0" * 64}


def test_gaps_between_labels_are_refused() -> None:
    table = read_segments(SHIPPED[0])
    with pytest.raises(VolumeError, match="without gaps"):
        SegmentTable(table.algorithm, table.segments[1:])
