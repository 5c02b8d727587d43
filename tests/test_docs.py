"""Every block of the documentation runs, prints what the page says it prints, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.pages import Block, blocks, commands, run_page

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:monai.transforms.spatial.dictionary Orientationd:FutureWarning"),
]


@pytest.mark.parametrize("name", [name for name in PAGES if name not in ("quickstart.md", "training.md")])
def test_page_runs(name: str, tmp_path: Path) -> None:
    run_page(DOCS / name, tmp_path)


def test_quick_start_learns_the_circles_and_draws_them(tmp_path: Path) -> None:
    namespace = run_page(DOCS / "quickstart.md", tmp_path)
    assert namespace["dice"] > 0.8
    assert namespace["iou"] == pytest.approx(namespace["dice"] / (2 - namespace["dice"]))
    drawn = np.asarray(Image.open(tmp_path / "circles.png"))
    assert drawn.shape == (3 * 192, 3 * 192, 3)
    image, reference = drawn[:, :192], drawn[:, 192:384]
    assert np.ptp(image, axis=2).max() == 0  # grey
    assert np.ptp(reference, axis=2).max() > 50  # coloured


def test_training_page_runs_and_leaves_what_it_says(tmp_path: Path) -> None:
    namespace = run_page(DOCS / "training.md", tmp_path)
    runs = tmp_path / "runs"
    for file in ("best.safetensors", "last.safetensors", "evaluation/cases.csv"):
        assert (runs / "hippocampus_mri" / file).is_file(), file
    assert len(list((runs / "hippocampus_mri" / "predictions").glob("*.nii.gz"))) == 1
    written = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert written == ["crop_overlay.png", "crop_seg.json", "crop_seg.nii.gz", "predictions.json"]
    assert (runs / "fast_dev" / "best.safetensors").is_file()
    assert (tmp_path / "elsewhere.db").is_file()
    # MONAI's command three times, accunet's twice up to the Python block; all have ended
    assert [run.info.status for run in namespace["runs"]] == ["FINISHED"] * 6
    artifacts = {item.path for item in namespace["client"].list_artifacts(namespace["runs"][0].info.run_id)}
    assert {"config.yaml", "validation_cases.csv", "bundle"} <= artifacts


def test_navigation_names_every_page() -> None:
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    named = [page for entry in yaml.safe_load(text)["nav"] for page in entry.values()]
    assert sorted(named) == PAGES


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *(DOCS / name for name in PAGES)], ids=lambda p: p.name)
def test_links_and_pictures_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name}: {target}#{anchor}"


def test_the_reader_of_pages_sees_notes_and_all_commands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    commented = "<!-- test: with --limit 1 -->\n```bash\naccunet a \\\n  b  # why\nX=1 accunet c\n```\n"
    page.write_text(f"# Title\n\n{commented}\n```text\nplain\n```\n")
    bash, text = blocks(page)
    assert (bash.language, bash.line, text.note) == ("bash", 4, "")
    assert commands(bash) == [["accunet", "a", "b", "--limit", "1"], ["X=1", "accunet", "c", "--limit", "1"]]


def test_a_page_that_prints_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(2 + 2)\n```\n\n<!-- test: printed -->\n```text\n5\n```\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(AssertionError, match="line 6"):
        run_page(page, tmp_path / "folder")


def test_an_unknown_command_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nrm everything\n```\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(AssertionError, match="no test knows how to run 'rm'"):
        run_page(page, tmp_path / "folder")


def test_what_is_skipped_has_a_reason() -> None:
    skipped: list[Block] = [b for name in PAGES for b in blocks(DOCS / name) if b.note.startswith("skip")]
    assert all(re.fullmatch(r"skip, .{10,}", block.note) for block in skipped)
    assert len(skipped) == 11  # servers, and what takes minutes: other tests do the same on a smaller scale


def slug(heading: str) -> str:
    """As the documentation's builder makes anchors of headings."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
