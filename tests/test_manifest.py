"""Manifests: written, read, kept as long as they may be, and held against the files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accunet_monai.bundle import (
    bundle_problems,
    list_bundles,
    load_bundle,
    manifest_digest,
    read_manifest,
    verify_bundle,
    write_manifest,
)
from accunet_monai.bundle import manifest as manifest_module
from accunet_monai.bundle.manifest import MANIFEST, WEIGHTS
from accunet_monai.cli import app
from accunet_monai.errors import AccunetError, BundleError
from accunet_monai.networks import ACCUNet, save_network
from accunet_monai.summary import export_checkpoint
from tests import made_bundle

SHIPPED = list_bundles()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small picture bundle; its random network takes a second."""
    return made_bundle.picture_bundle(tmp_path_factory.mktemp("made"))


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    copy = made_bundle.copied_bundle(made, tmp_path)
    write_manifest(copy)
    return copy


def code_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AccunetError) as caught:
        function(*args, **kwargs)
    return caught.value.code


def codes(bundle: Path, **kwargs: Any) -> list[str]:
    return [problem.code for problem in bundle_problems(bundle, **kwargs)]


# ----------------------------------------------------------------------------------------------------------------------
# Written and read


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_bundles_are_as_their_manifests_say(path: Path) -> None:
    """After a change of a shipped bundle: ``accunet bundle manifest bundles/NAME``."""
    verify_bundle(path)
    manifest = read_manifest(path)
    assert manifest is not None
    metadata = made_bundle.read_metadata(path)
    assert (manifest.name, manifest.version) == (metadata["name"], metadata["version"])


def test_a_manifest_has_size_and_sha256_of_every_file(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest is not None
    present = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(manifest.files) == present - {MANIFEST}
    for name, entry in manifest.files.items():
        content = (bundle / name).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest_digest(bundle) == hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    assert verify_bundle(bundle) == manifest_digest(bundle)


def test_writing_again_changes_nothing(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    assert write_manifest(bundle).read_bytes() == before


def test_where_the_weights_are_from_is_kept_as_long_as_they_are_the_same(bundle: Path) -> None:
    write_manifest(bundle, mlflow_run="abc", dataset_digest="sha256:1")
    (bundle / "LICENSE").write_text("free", encoding="utf-8")
    write_manifest(bundle)
    manifest = read_manifest(bundle)
    assert manifest is not None
    assert (manifest.mlflow_run, manifest.dataset_digest) == ("abc", "sha256:1")
    assert "LICENSE" in manifest.files
    write_manifest(bundle, mlflow_run="def")
    assert (read_manifest(bundle) or manifest).mlflow_run == "def"
    with (bundle / WEIGHTS).open("ab") as file:
        file.write(b" ")
    write_manifest(bundle)
    manifest = read_manifest(bundle)
    assert manifest is not None
    assert (manifest.mlflow_run, manifest.dataset_digest) == (None, None)


def test_a_broken_manifest_is_refused_and_can_be_written_anew(bundle: Path) -> None:
    for text in ("{", "[]", '{"files": {}}', '{"name": 1, "version": "1", "files": {}}'):
        (bundle / MANIFEST).write_text(text, encoding="utf-8")
        assert code_of(load_bundle, bundle) == "BUNDLE_INVALID"
    for name in ("/etc/passwd", "a/../../b", "..", "", ".", "a//b", "./a", "a\\b"):
        content = {"name": "a", "version": "1", "files": {name: {"size": 1, "sha256": "0" * 64}}}
        (bundle / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
        assert code_of(read_manifest, bundle) == "BUNDLE_INVALID", name
    for entry in ({"size": -1, "sha256": "0" * 64}, {"size": 1, "sha256": "0"}, {"size": 1}, [], {"x": 1}):
        content = {"name": "a", "version": "1", "files": {"a": entry}}
        (bundle / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
        assert code_of(read_manifest, bundle) == "BUNDLE_INVALID", entry
    write_manifest(bundle)
    verify_bundle(bundle)


# ----------------------------------------------------------------------------------------------------------------------
# Held against the files


def test_exchanged_weights_are_refused_with_what_was_expected_and_found(bundle: Path) -> None:
    expected = hashlib.sha256((bundle / WEIGHTS).read_bytes()).hexdigest()
    other = ACCUNet(**load_bundle(bundle).network.config)
    save_network(other, bundle / WEIGHTS)
    found = hashlib.sha256((bundle / WEIGHTS).read_bytes()).hexdigest()
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    assert caught.value.code == "BUNDLE_DIGEST"
    assert caught.value.path == str(bundle / WEIGHTS)
    for said in (expected, found, f"accunet bundle manifest {bundle}"):
        assert said in str(caught.value)
    assert code_of(export_checkpoint, bundle, bundle.parent / "model.pt") == "BUNDLE_DIGEST"
    load_bundle(bundle, weights=bundle / WEIGHTS)  # whoever names weights means these
    write_manifest(bundle)
    load_bundle(bundle)


def test_weights_that_the_manifest_does_not_list_are_refused(bundle: Path) -> None:
    path = bundle / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["files"][WEIGHTS.as_posix()]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match="not in the manifest") as caught:
        load_bundle(bundle)
    assert caught.value.code == "BUNDLE_DIGEST"


def test_without_a_manifest_a_bundle_opens_and_is_not_verified(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    load_bundle(bundle)
    assert codes(bundle) == ["BUNDLE_NO_MANIFEST"]
    assert codes(bundle, strict=False) == []
    assert verify_bundle(bundle, strict=False) is None
    assert manifest_digest(bundle) is None


def test_verify_names_all_problems_at_once(bundle: Path) -> None:
    (bundle / "configs" / "metadata.json").write_text("{}", encoding="utf-8")
    (bundle / "notes.md").write_text("new", encoding="utf-8")
    (bundle / "models" / "model.pt").write_bytes(b"x")
    (bundle / "configs" / "inference.yaml").unlink()
    with pytest.raises(BundleError) as caught:
        verify_bundle(bundle)
    assert caught.value.code == "BUNDLE_UNVERIFIED"
    message = str(caught.value)
    for name in ("metadata.json", "notes.md", "model.pt", "inference.yaml"):
        assert name in message
    assert "6 problems" in message  # the metadata and the config are other files, and not usable
    assert sorted(set(codes(bundle))) == ["BUNDLE_DIGEST", "BUNDLE_FILE", "BUNDLE_INVALID"]
    assert "notes.md" not in " ".join(map(str, bundle_problems(bundle, strict=False)))


def test_the_manifests_own_digest_finds_out_who_wrote_it_anew(bundle: Path) -> None:
    known = verify_bundle(bundle)
    assert verify_bundle(bundle, digest=known) == known
    save_network(ACCUNet(**load_bundle(bundle).network.config), bundle / WEIGHTS)
    write_manifest(bundle)
    verify_bundle(bundle)
    assert codes(bundle, digest=known) == ["BUNDLE_DIGEST"]
    (bundle / MANIFEST).unlink()
    assert codes(bundle, strict=False, digest=known) == ["BUNDLE_DIGEST"]


def test_too_many_and_too_large_files(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_FILE_BYTES", 1000)
    assert "BUNDLE_TOO_LARGE" in codes(bundle)
    assert code_of(load_bundle, bundle) == "BUNDLE_TOO_LARGE"
    assert code_of(write_manifest, bundle) == "BUNDLE_TOO_LARGE"
    monkeypatch.undo()
    monkeypatch.setattr(manifest_module, "MAX_FILES", 2)
    assert codes(bundle) == ["BUNDLE_TOO_LARGE"]


# ----------------------------------------------------------------------------------------------------------------------
# From the command line


def accunet(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return str(result.output)


def test_manifest_and_verify_from_the_command_line(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    assert "[BUNDLE_NO_MANIFEST]" in accunet("bundle", "verify", bundle, status=1)
    assert "sha256 of the manifest: none" in accunet("bundle", "verify", bundle, "--no-strict")
    written = accunet("bundle", "manifest", bundle, "--mlflow-run", "abc")
    digest = manifest_digest(bundle)
    assert f"sha256 of the manifest: {digest}" in written
    assert f"sha256 of the manifest: {digest}" in accunet("bundle", "verify", bundle, "--digest", digest)
    assert "[BUNDLE_DIGEST]" in accunet("bundle", "verify", bundle, "--digest", "0" * 64, status=1)
    save_network(ACCUNet(2, 3, 2, base_filters=4), bundle / WEIGHTS)
    assert f"[BUNDLE_DIGEST] {bundle / WEIGHTS}" in accunet("bundle", "verify", bundle, status=1)
    accunet("bundle", "manifest", bundle)
    assert "[WEIGHTS_MISMATCH]" in accunet("bundle", "verify", bundle, status=1)  # as listed, and of another network


def test_unpack_from_the_command_line(bundle: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", bundle)
    assert "accunet bundle verify" in accunet("bundle", "unpack", archive, tmp_path / "new")
    accunet("bundle", "verify", tmp_path / "new")
    assert "[OUTPUT_TAKEN]" in accunet("bundle", "unpack", archive, tmp_path / "new", status=1)
    assert "accunet bundle unpack" in accunet("bundle", "show", archive, status=1)
