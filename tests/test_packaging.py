"""What is shipped: the wheel's content, the licences it draws in, what `accunet --help` imports, rules on files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from email.message import Message
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

RUNTIME_EXTRAS = ("", "train", "pacs", "export", "ray", "demo")
HEAVY = ("torch", "monai", "numpy", "mlflow", "ignite", "nibabel", "SimpleITK", "scipy", "matplotlib", "ray")


# ----------------------------------------------------------------------------------------------------------------------
# Licences: nothing under GPL or AGPL may come with a runtime extra. LGPL may.


def test_no_runtime_extra_brings_a_gpl_package(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    refused = []
    for extra in RUNTIME_EXTRAS:
        for name, through in requirement_closure(project, extra).items():
            reason = why_refused(metadata.metadata(name), licence_file(name))
            if reason:
                refused.append(f"extra [{extra or 'base'}]: {' → '.join((*through, name))}: {reason}")
    assert not refused, "\n".join(refused)


def test_the_closure_follows_requirements_of_requirements(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    closure = requirement_closure(project, "demo")
    assert closure["torch"] == ()
    assert closure["mlflow"] == closure["pynetdicom"] == ()  # demo names pacs and train
    assert requirement_closure(project, "train")["sqlalchemy"][0] == "mlflow"
    assert "pytest" not in closure
    assert {"mlflow", "pytorch-ignite", "ray"}.isdisjoint(requirement_closure(project, "pacs"))
    assert {"pynetdicom", "dicomweb-client"}.isdisjoint(requirement_closure(project, "train"))


@pytest.mark.parametrize(
    ("expression", "refused"),
    [
        ("MIT", False),
        ("GPL-3.0-or-later", True),
        ("GPL-2.0-only", True),
        ("AGPL-3.0", True),
        ("LGPL-3.0-or-later", False),
        ("MIT OR GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", True),
        ("BSD-3-Clause AND (GPL-2.0-only OR Apache-2.0)", False),
        ("(MIT OR BSD-3-Clause) AND (GPL-2.0-only OR AGPL-3.0-only)", True),
        ("BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("GPL-2.0-only WITH Bison-exception-2.2", True),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception", False),
    ],
)
def test_licence_expressions(expression: str, refused: bool) -> None:
    assert bool(why_refused(licence_metadata(License_Expression=expression))) is refused


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"License": "GPL V3.0"}, True),  # as pylibjpeg-libjpeg says it
        ({"License": "GNU General Public License v3"}, True),
        ({"License": "GNU Affero General Public License"}, True),
        ({"License": "GNU Lesser General Public License v3"}, False),
        ({"License": "Apache-2.0"}, False),
        ({"License": "BSD 3-Clause License\n\nthis text mentions the GPL further down"}, False),
        ({"License": "MIT", "Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"}, True),
        ({"Classifier": "License :: OSI Approved :: GNU Lesser General Public License v2 (LGPLv2)"}, False),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, False),
        ({}, True),  # says nothing at all
    ],
)
def test_licence_fields_and_classifiers(fields: dict[str, str], refused: bool) -> None:
    assert bool(why_refused(licence_metadata(**fields))) is refused


def test_a_licence_file_alone_is_read() -> None:
    silent = licence_metadata(Name="x")
    assert why_refused(silent, "                    GNU GENERAL PUBLIC LICENSE\n             Version 3, 29 June 2007\n")
    assert why_refused(silent, "                    GNU AFFERO GENERAL PUBLIC LICENSE\n")
    assert not why_refused(silent, "Copyright (c) 2017 A. Author\n\nPermission is hereby granted, free of charge")
    assert not why_refused(silent, "                   GNU LESSER GENERAL PUBLIC LICENSE\n")


def requirement_closure(project: dict[str, object], extra: str) -> dict[str, tuple[str, ...]]:
    """Distribution → the chain of distributions that drew it in, for an install of this project with ``extra``."""
    own = canonicalize_name(str(project["name"]))
    optional: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    base: list[str] = project["dependencies"]  # type: ignore[assignment]
    waiting: list[tuple[Requirement, tuple[str, ...]]] = [(Requirement(line), ()) for line in base]
    waiting += [(Requirement(line), ()) for line in optional.get(extra, [])]
    seen: set[tuple[str, frozenset[str]]] = set()
    closure: dict[str, tuple[str, ...]] = {}
    while waiting:
        requirement, through = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        if name == own:
            waiting += [(Requirement(line), through) for inner in requirement.extras for line in optional[inner]]
            continue
        closure.setdefault(name, through)
        for line in metadata.requires(name) or []:
            inner_requirement = Requirement(line)
            if applies(inner_requirement, requirement.extras):
                waiting.append((inner_requirement, (*through, name)))
    return closure


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def why_refused(about: Message, text: str = "") -> str:
    """Why a distribution may not come with us, by its metadata or else its licence's text; empty when it may."""
    expression = about.get("License-Expression")
    if expression:
        return "" if allowed_expression(expression) else f"License-Expression: {expression}"
    classifiers = [line for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    # A whole licence text in this field begins with its title; words further down may speak of other licences.
    title = next(iter((about.get("License") or "").strip().splitlines()), "")
    if title.upper() == "UNKNOWN":
        title = ""
    said = [*classifiers, title] if classifiers or title else [text[:200]]
    if not any(said):
        return "names no licence"
    return " ".join(next((words for words in said if is_gpl(words)), "").split())


def licence_file(name: str) -> str:
    """The text of the licence that a distribution brings; empty when it brings none."""
    files = [file for file in metadata.files(name) or [] if re.match(r"(LICEN[CS]E|COPYING)", file.name, re.IGNORECASE)]
    files = [file for file in files if ".dist-info" in str(file)]
    return files[0].read_text(encoding="utf-8") if files else ""


def is_gpl(words: str) -> bool:
    without_lesser = re.sub(r"LGPL[\w.+-]*|(Lesser|Library) General Public Licen[cs]e", "", words, flags=re.IGNORECASE)
    return bool(re.search(r"A?GPL|(General|Affero) Public Licen[cs]e", without_lesser, flags=re.IGNORECASE))


def allowed_expression(expression: str) -> bool:
    """Whether an SPDX expression leaves a choice without GPL. GCC's exception frees what links its libraries."""
    freed = re.sub(r"GPL[\w.+-]*\s+WITH\s+GCC-exception[\w.-]*", "MIT", expression, flags=re.IGNORECASE)
    tokens = re.findall(r"[()]|[\w.+-]+", re.sub(r"\s+WITH\s+[\w.-]+", "", freed, flags=re.IGNORECASE))
    python = [t.lower() if t.upper() in {"AND", "OR"} or t in "()" else str(not is_gpl(t)) for t in tokens]
    return bool(eval(" ".join(python)))  # only True, False, and, or, brackets


def licence_metadata(**fields: str) -> Message:
    message = Message()
    for key, value in fields.items():
        message[key.replace("_", "-")] = value
    return message


# ----------------------------------------------------------------------------------------------------------------------
# The wheel


@pytest.fixture(scope="module")
def shipped_files(root: Path, git: str) -> list[str]:
    """The project's files by git's word: tracked, or new and not ignored."""
    return list(project_files(root, git))


@pytest.fixture(scope="module")
def wheel(root: Path, shipped_files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the project's files with junk of all kinds thrown in."""
    copy = tmp_path_factory.mktemp("source")
    for name in shipped_files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, copy / name)
    for junk in ("models/last.pt", "models/model.ts", "runs/1/metrics.csv", "configs/__pycache__/x.cpython-311.pyc"):
        path = copy / "bundles" / "hippocampus_mri" / junk
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("junk", encoding="utf-8")
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(copy), "--no-deps", "--no-build-isolation", "--wheel-dir", str(out))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh virtual environment that has the wheel, and this environment's other packages.

    These come through a path file, which does not process the path files it finds there: an editable install of the
    checkout stays unseen.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "outer.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def test_the_wheel_carries_every_file_of_the_bundles_and_no_junk(wheel: Path, shipped_files: list[str]) -> None:
    expected = {name for name in shipped_files if name.startswith("bundles/")}
    assert any(name.endswith(".safetensors") for name in expected)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    prefix = "accunet_monai/_bundles/"
    assert {"bundles/" + name.removeprefix(prefix) for name in names if name.startswith(prefix)} == expected


def test_the_wheel_carries_the_package_and_nothing_beside_it(wheel: Path, shipped_files: list[str]) -> None:
    expected = {name for name in shipped_files if name.startswith("accunet_monai/")}
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.startswith("accunet_monai/_bundles/")]
    assert {name for name in names if name.startswith("accunet_monai/")} == expected
    assert {name.split("/")[0] for name in names} == {"accunet_monai", "accunet_monai-0.1.0.dist-info"}
    assert {"LICENSE", "CC-BY-SA-4.0.txt"} <= {Path(name).name for name in names if "/licenses/" in name}


def test_the_installed_wheel_finds_its_own_bundles(installed: Path, tmp_path: Path) -> None:
    code = (
        "import json, accunet_monai, accunet_monai.bundle as b; "
        "print(json.dumps([accunet_monai.__file__, str(b.find_bundle('hippocampus_mri'))]))"
    )
    module, bundle = json.loads(run([str(installed), "-P", "-c", code], cwd=tmp_path).splitlines()[-1])
    package = Path(module).parent
    assert package.is_relative_to(installed.parents[1])
    assert Path(bundle) == package / "_bundles" / "hippocampus_mri"


def test_the_installed_command_lists_the_bundles(installed: Path, tmp_path: Path) -> None:
    shown = run([str(installed.with_name("accunet")), "bundle", "list"], cwd=tmp_path)
    assert "hippocampus_mri" in shown
    assert "brain_tissue_t1" in shown


def test_the_checkout_finds_its_own_bundles(root: Path, tmp_path: Path) -> None:
    """The other half of the resolver: an editable install leaves the bundles in the checkout."""
    code = "import accunet_monai.bundle as b; print(b.find_bundle('hippocampus_mri'))"
    shown = run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {code}"], cwd=tmp_path)
    assert Path(shown.splitlines()[-1]).resolve() == root / "bundles" / "hippocampus_mri"


def pip(*arguments: str) -> None:
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments])


def run(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ----------------------------------------------------------------------------------------------------------------------
# Start-up


def test_help_imports_nothing_heavy(root: Path) -> None:
    code = (
        "import json, sys\n"
        "from accunet_monai.cli import app\n"
        "try:\n    app(['--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print()\nprint(json.dumps(sorted(name.split('.')[0] for name in sys.modules)))"
    )
    shown = run([sys.executable, "-c", code], cwd=root).splitlines()
    assert any("predict" in line for line in shown)
    assert set(json.loads(shown[-1])).isdisjoint(HEAVY)


# ----------------------------------------------------------------------------------------------------------------------
# Rules on files


def test_no_file_names_a_folder_of_one_machine(root: Path, shipped_files: list[str]) -> None:
    patterns = [r"(?<![\w.])/(work|root|tmp/(venv|w\b))", r"(?<![\w/])(\.\./)*shared/"]
    allowed = {("tests/conftest.py", "../shared/")}  # the one default of ACCUNET_TEST_DATA
    found = []
    for name in shipped_files:
        try:
            text = (root / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        matches = [match for pattern in patterns for match in re.finditer(pattern, text)]
        found += [
            f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match.group(0)}"
            for match in matches
            if (name, match.group(0)) not in allowed and name != "tests/test_packaging.py"
        ]
    assert not found, "\n".join(found)


def test_no_module_is_over_400_lines(shipped_files: list[str], root: Path) -> None:
    modules = [name for name in shipped_files if re.match(r"(accunet_monai|benchmarks)/.*\.py$", name)]
    assert modules
    lengths = {name: len((root / name).read_text(encoding="utf-8").splitlines()) for name in modules}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_prediction_needs_no_other_extra(root: Path) -> None:
    """With the packages of all extras hidden, what prediction is made of still imports."""
    hidden = ("ignite", "mlflow", "matplotlib", "nilearn", "pynetdicom", "dicomweb_client", "onnx")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "import accunet_monai.bundle, accunet_monai.inferers, accunet_monai.transforms, accunet_monai.cli"
    )
    run([sys.executable, "-c", code], cwd=root)


def project_files(root: Path, git: str) -> Iterator[str]:
    listed = run([git, "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=root)
    return (name for name in sorted(set(listed.split("\0"))) if name and (root / name).is_file())


def test_the_installed_command_segments_a_file_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 20, (36, 50, 36)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1, 1, 1])), tmp_path / "crop.nii.gz")
    accunet = str(installed.with_name("accunet"))
    run(
        [accunet, "predict", "crop.nii.gz", "--bundle", "hippocampus_mri", "--output", "out", "--overlay"], cwd=tmp_path
    )
    written = nib.load(tmp_path / "out" / "crop_seg.nii.gz")
    assert written.shape == image.shape
    np.testing.assert_array_equal(written.affine, np.diag([-1.0, 1, 1, 1]))
    assert (tmp_path / "out" / "crop_overlay.png").is_file()
