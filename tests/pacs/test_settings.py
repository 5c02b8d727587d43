"""A site's settings: what is wrong is refused by its place, and conditions mean what they say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from accunet_monai.errors import PacsError
from accunet_monai.pacs.conditions import Condition
from accunet_monai.pacs.pseudonyms import Pseudonyms, make_key
from accunet_monai.pacs.settings import read_site
from tests.conftest import ROOT

EXAMPLE = ROOT / "configs" / "sites" / "example.yaml"


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    values = copy.deepcopy(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")))
    change(values)
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def test_the_example_is_valid_and_its_paths_are_beside_it() -> None:
    site = read_site(EXAMPLE)
    assert site.storage == EXAMPLE.parent / "state"
    assert site.database_url == f"sqlite:///{EXAMPLE.parent}/state/state.sqlite3"
    assert site.bundles[0].name == "hippocampus_mri"
    assert site.destination("archive").seg.type == "binary"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(prot=1), "unknown key 'prot'. Did you mean 'port'?"),
        (
            lambda v: v["pacs"][0]["dimse"].update(ae_titel="X"),
            "pacs.0.dimse: unknown key 'ae_titel'. Did you mean 'ae_title'?",
        ),
        (lambda v: v.update(ae_title="SEVENTEENLETTERS_"), "ae_title:"),
        (lambda v: v.update(ae_title="A\\B"), "no backslash"),
        (lambda v: v.update(port=0), "port:"),
        (lambda v: v["destinations"][0].update(pacs="archiv"), "nothing is called 'archiv'. Did you mean 'archive'?"),
        (
            lambda v: v["bundles"][0].update(destinations=["nowhere"]),
            "bundle 'hippocampus_mri': nothing is called 'nowhere'",
        ),
        (lambda v: v["bundles"][0].update(destinations=[]), "shadow: true"),
        (lambda v: v["bundles"].append(v["bundles"][0]), "'hippocampus_mri' is there twice"),
        (lambda v: v["pacs"][0].update(dimse=None, dicomweb=None), "neither dimse nor dicomweb"),
        (lambda v: v["pacs"][0]["dimse"].update(tls=True), "no tls section"),
        (lambda v: v.update(database="postgresql+psycopg://u:secret@h/n"), "no password belongs here"),
        (lambda v: v["pacs"][0]["dicomweb"].update(url="http://u:secret@h/"), "pacs.0.dicomweb.url"),
        (lambda v: v.update(jobs={"lease_seconds": 5, "renew_seconds": 4}), "at least twice"),
        (lambda v: v["bundles"][0].update(when={"tag": "Modalty", "equals": "MR"}), "Did you mean 'Modality'?"),
        (lambda v: v["bundles"][0].update(when={"tag": "PixelData", "exists": True}), "no text or number"),
        (lambda v: v["bundles"][0].update(when={"tag": "Modality"}), "exactly one of equals"),
        (lambda v: v["bundles"][0].update(when={"all": []}), "bundles.0.when.all"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path) -> None:
    with pytest.raises(PacsError) as caught:
        read_site(changed(tmp_path, change))
    assert caught.value.code == "SITE_INVALID"
    assert said in caught.value.message
    assert "secret" not in caught.value.message.replace("no secret", "")


def test_no_file_and_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(PacsError, match="SITE_MISSING"):
        read_site(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(PacsError, match="SITE_INVALID"):
        read_site(tmp_path / "bad.yaml")


TAGS = {
    "Modality": ["MR"],
    "ImageType": ["ORIGINAL", "PRIMARY", "M"],
    "SliceThickness": ["1.5"],
    "SeriesDescription": [""],
}


@pytest.mark.parametrize(
    ("test", "holds"),
    [
        ({"tag": "Modality", "equals": "mr "}, True),
        ({"tag": "Modality", "equals": "CT"}, False),
        ({"tag": "ImageType", "in": ["DERIVED", "PRIMARY"]}, True),
        ({"tag": "ImageType", "equals": "ORIGINAL\\PRIMARY"}, False),
        ({"tag": "ImageType", "starts_with": "orig"}, True),
        ({"tag": "ImageType", "contains": "IMAR"}, True),
        ({"tag": "ImageType", "contains": ".*"}, False),
        ({"tag": "SliceThickness", "at_most": 1.5}, True),
        ({"tag": "SliceThickness", "at_least": 1, "at_most": 1.4}, False),
        ({"tag": "SliceThickness", "equals": 1.50}, True),
        ({"tag": "Modality", "at_least": 0}, False),
        ({"tag": "SeriesDescription", "exists": True}, False),
        ({"tag": "SeriesDescription", "exists": False}, True),
        ({"tag": "BodyPartExamined", "exists": False}, True),
        ({"tag": "BodyPartExamined", "equals": ""}, False),
        ({"not": {"tag": "BodyPartExamined", "equals": "HEAD"}}, True),
    ],
)
def test_conditions(test: dict[str, Any], holds: bool) -> None:
    assert Condition.model_validate(test).holds(TAGS) is holds


TESTS = st.sampled_from(
    [{"tag": "Modality", "equals": "MR"}, {"tag": "Modality", "equals": "CT"}, {"tag": "ImageType", "contains": "M"}]
)


@given(st.lists(TESTS, min_size=1, max_size=4))
def test_not_all_is_any_not(tests: list[dict[str, Any]]) -> None:
    one = Condition.model_validate({"not": {"all": tests}})
    other = Condition.model_validate({"any": [{"not": test} for test in tests]})
    for tags in (TAGS, {}, {"Modality": ["CT"]}):
        assert one.holds(tags) == other.holds(tags)


def test_conditions_have_an_end() -> None:
    deep: dict[str, Any] = {"tag": "Modality", "equals": "MR"}
    for _ in range(8):
        deep = {"not": deep}
    with pytest.raises(ValidationError, match="more than 8 levels"):
        Condition.model_validate(deep)


def test_pseudonyms_depend_on_the_key_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_key(tmp_path / name)
    one, same, other = Pseudonyms(tmp_path / "a"), Pseudonyms(tmp_path / "a"), Pseudonyms(tmp_path / "b")
    assert one("patient", "7") == same("patient", "7") != other("patient", "7")
    assert one("patient", "7") != one("study", "7")
    with pytest.raises(PacsError, match="KEY_EXISTS"):
        make_key(tmp_path / "a")
    (tmp_path / "a").chmod(0o644)
    with pytest.raises(PacsError, match="KEY_EXPOSED"):
        Pseudonyms(tmp_path / "a")
    (tmp_path / "c").write_text("00ff\n")
    (tmp_path / "c").chmod(0o600)
    with pytest.raises(PacsError, match="KEY_INVALID"):
        Pseudonyms(tmp_path / "c")
