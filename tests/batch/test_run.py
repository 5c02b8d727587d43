"""Folders of files: what can be segmented is, what cannot is named with its reason, and nothing is overwritten."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from rich.console import Console

from accunet_monai.batch import predict_files, results
from accunet_monai.bundle import find_bundle, load_bundle
from accunet_monai.errors import BundleError
from accunet_monai.volumes import Series, Volume, read_label_map, read_series, read_volume, series_name
from accunet_monai.volumes.dicom_seg_read import read_seg
from tests import made_bundle
from tests.volumes.made import oblique
from tests.volumes.nifti_as_dicom import write_series

NAME = "hippocampus_mri"
OBLIQUE = oblique() @ np.diag([1 / 0.9, 1 / 1.1, 1 / 2.5, 1])
"""Voxels of 1 mm, as the bundle wants them."""

REFUSED = {
    "corrupt.nii.gz": "NIFTI_UNREADABLE",
    "empty.nii": "NIFTI_EMPTY",
    "four_d.nii.gz": "VOLUME_NOT_3D",
    "infinite.nii.gz": "VOLUME_NONFINITE",
    "rgb.nii.gz": "VOLUME_RGB",
    "truncated.nii.gz": "NIFTI_TRUNCATED",
}


def mixed_folder(folder: Path) -> Path:
    """Two good volumes, each kind of bad one, and files that are none."""
    image = made_bundle.made_volume(0)[0]
    oblique = np.array([[0.9, 0.1, 0, -4], [-0.1, 1.1, 0, 7], [0, 0, -1.2, 3], [0, 0, 0, 1]])
    made_bundle.save_volume(folder / "a[good].nii.gz", image)
    made_bundle.save_volume(folder / "z.good.nii", image, oblique)
    made_bundle.save_volume(folder / "four_d.nii.gz", np.stack([image, image], 3))
    infinite = image.astype(np.float32)
    infinite[1, 2, 3] = np.inf
    made_bundle.save_volume(folder / "infinite.nii.gz", infinite)
    rgb = np.zeros(image.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    made_bundle.save_volume(folder / "rgb.nii.gz", rgb)
    whole = gzip.decompress((folder / "a[good].nii.gz").read_bytes())
    (folder / "truncated.nii.gz").write_bytes(gzip.compress(whole[: len(whole) // 2]))
    (folder / "corrupt.nii.gz").write_bytes(np.random.default_rng(0).bytes(3000))
    (folder / "empty.nii").touch()
    (folder / "notes.txt").write_text("not an image", encoding="utf-8")
    (folder / ".hidden.nii").touch()
    (folder / "sub").mkdir()
    return folder


def recorded() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200), text


def test_bad_files_are_reported_and_the_others_are_segmented(tmp_path: Path) -> None:
    source, output = mixed_folder(tmp_path / "in"), tmp_path / "out" / "deep"
    console, text = recorded()
    report = predict_files(source, NAME, output, overlay=True, device="cpu", console=console)
    assert {path.name: error.code for path, error in report.failed.items()} == REFUSED
    assert {path.name: target.name for path, target in report.written.items()} == {
        "a[good].nii.gz": "a[good]_seg.nii.gz",
        "z.good.nii": "z.good_seg.nii.gz",
    }
    for path, error in report.failed.items():
        assert error.path == str(path)
        lines = [line for line in text.getvalue().splitlines() if str(path) in line]
        assert len(lines) == 1  # one line each, with the path once
        assert lines[0].count(str(path)) == 1
        assert f"[{error.code}]" in lines[0]
        assert error.message in lines[0]
    assert sorted(path.name for path in output.iterdir()) == [
        "a[good]_overlay.png", "a[good]_seg.json", "a[good]_seg.nii.gz", "predictions.json",
        "z.good_overlay.png", "z.good_seg.json", "z.good_seg.nii.gz",
    ]  # fmt: skip
    predictor = load_bundle(NAME)
    for image, label_map in report.written.items():
        stored = read_label_map(label_map)
        np.testing.assert_array_equal(stored.array, predictor.predict(image).label_map)
        np.testing.assert_array_equal(stored.affine_ras, read_volume(image).affine_ras)
        assert NAME.encode() in nib.load(label_map).header["descrip"].item()
        with Image.open(output / f"{label_map.name.removesuffix('_seg.nii.gz')}_overlay.png") as picture:
            assert np.ptp(np.asarray(picture)) > 100


def test_results_do_not_go_among_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made_bundle.save_volume(tmp_path / "in" / "a.nii", made_bundle.made_volume(0)[0])
    monkeypatch.chdir(path.parent)
    for source, output in ((path.parent, path.parent), (path, "."), (path.parent, tmp_path / "in" / ".." / "in")):
        with pytest.raises(BundleError) as caught:
            predict_files(source, NAME, output, device="cpu")
        assert caught.value.code == "OUTPUT_TAKEN"
    assert [item.name for item in path.parent.iterdir()] == ["a.nii"]


def test_two_files_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    first = made_bundle.save_volume(tmp_path / "in" / "a.nii", made_bundle.made_volume(0)[0])
    second = made_bundle.save_volume(tmp_path / "in" / "a.nii.gz", made_bundle.made_volume(1)[0])
    report = predict_files(tmp_path / "in", NAME, tmp_path / "out", device="cpu", console=recorded()[0])
    assert list(report.written) == [first]
    assert report.failed[second].code == "OUTPUT_TAKEN"
    stored = read_label_map(report.written[first]).array
    np.testing.assert_array_equal(stored, load_bundle(NAME).predict(first).label_map)


def test_what_nobody_thought_of_stops_one_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        made_bundle.save_volume(tmp_path / "in" / f"{name}.nii", made_bundle.made_volume(0)[0])
    write = results.write_label_map

    def full_disk(path: Path, *args: object, **kwargs: object) -> object:
        if path.name.startswith("a_"):
            raise OSError("No space left on device")
        return write(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(results, "write_label_map", full_disk)
    report = predict_files(tmp_path / "in", NAME, tmp_path / "out", device="cpu", console=recorded()[0])
    (error,) = report.failed.values()
    assert (error.code, error.path) == ("PREDICT_FAILED", str(tmp_path / "in" / "a.nii"))
    assert "No space left" in error.message
    assert [path.name for path in report.written] == ["b.nii"]


def test_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for source, code in ((tmp_path, "INPUT_EMPTY"), (tmp_path / "none", "INPUT_MISSING")):
        with pytest.raises(BundleError) as caught:
            predict_files(source, NAME, tmp_path / "out", device="cpu")
        assert caught.value.code == code
    assert not (tmp_path / "out").exists()


# DICOM


def same_place(first: Volume, second: Volume) -> None:
    """Two label maps hold the same labels at the same places of the world, whatever the order of their axes."""
    first, second = first.reoriented("RAS"), second.reoriented("RAS")
    np.testing.assert_allclose(first.affine_ras, second.affine_ras, atol=1e-3)
    np.testing.assert_array_equal(first.array, second.array)


@pytest.mark.parametrize("axcodes", ["LPS", "LSA", "PIR"])
def test_a_hippocampus_in_dicom_gets_the_label_map_it_gets_in_nifti(
    test_data: Path, tmp_path: Path, axcodes: str
) -> None:
    path = sorted((test_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[0]
    stored = read_volume(path)
    image = Volume(np.rint(stored.array).astype(np.int16), stored.affine_ras)
    assert image.array.min() >= 0
    write_series(tmp_path / "dicom", image.reoriented(axcodes))
    path = made_bundle.save_volume(tmp_path / "nifti" / "a.nii.gz", image.array, image.affine_ras)
    console = recorded()[0]
    (label_map,) = predict_files(
        tmp_path / "dicom", NAME, tmp_path / "out", device="cpu", console=console
    ).written.values()
    expected = load_bundle(NAME).predict(path).label_map
    assert len(np.unique(expected)) == 3
    same_place(read_label_map(label_map), Volume(expected, image.affine_ras))


def test_real_dicom_gets_the_label_map_of_its_nifti_twin(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "dicom" / "mr_hippocrop"
    console, text = recorded()
    found = predict_files(folder / "dicom", NAME, tmp_path / "dicom", device="cpu", console=console)
    twins = predict_files(folder / "ref", NAME, tmp_path / "nifti", device="cpu", console=recorded()[0])
    assert not found.failed
    assert len(found.written) == len(twins.written) == 2
    by_shape = {read_label_map(path).reoriented("RAS").shape: read_label_map(path) for path in twins.written.values()}
    for series, path in found.written.items():
        assert isinstance(series, Series)
        assert f"{path.name}: MR · 'HippoCrop'" in text.getvalue()
        label_map = read_label_map(path)
        same_place(label_map, by_shape[label_map.reoriented("RAS").shape])
        np.testing.assert_array_equal(label_map.affine_ras, read_series(series).affine_ras.astype(np.float32))


def test_seg_and_nifti_of_a_series_say_the_same(tmp_path: Path) -> None:
    image = Volume(made_bundle.made_volume(0)[0], OBLIQUE)
    write_series(tmp_path / "in" / "deep" / "er", image)
    arguments = {"overlay": True, "device": "cpu", "console": recorded()[0]}
    (nifti,) = predict_files(tmp_path / "in", NAME, tmp_path / "nifti", **arguments).written.values()  # type: ignore[arg-type]
    report = predict_files(tmp_path / "in", NAME, tmp_path / "seg", output_format="seg", **arguments)  # type: ignore[arg-type]
    (seg,) = report.written.values()
    name = series_name(read_series(tmp_path / "in").provenance["dicom"])
    assert (nifti.name, seg.name) == (f"{name}_seg.nii.gz", f"{name}_seg.dcm")
    assert (tmp_path / "seg" / f"{name}_overlay.png").is_file()
    stored, found = read_label_map(nifti), read_seg(seg)
    planes = [np.linalg.inv(stored.affine_ras) @ affine for affine in found.affines_ras]
    for n, plane in enumerate(planes):
        for i, j in np.ndindex(found.label_map.shape[:2]):
            place = tuple(int(index) for index in np.rint((plane @ (i, j, 0, 1))[:3]))
            assert stored.array[place] == found.label_map[i, j, n]
    assert np.count_nonzero(found.label_map) == np.count_nonzero(stored.array)
    again = predict_files(tmp_path / "in", NAME, tmp_path / "again", output_format="seg", **arguments)  # type: ignore[arg-type]
    assert next(iter(again.written.values())).read_bytes() == seg.read_bytes()
    segments = {segment.number: segment.name for segment in found.segments}
    assert segments == {1: "Anterior hippocampus", 2: "Posterior hippocampus"}


def test_nifti_and_dicom_in_one_folder_and_what_is_refused_of_them(tmp_path: Path) -> None:
    image = made_bundle.made_volume(0)[0]
    source = tmp_path / "in"
    made_bundle.save_volume(source / "a.nii.gz", image)
    write_series(source / "good", Volume(image, OBLIQUE), "good")
    gap = source / "gap"
    write_series(gap, Volume(image, OBLIQUE), "gap")
    by_depth = sorted(gap.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    by_depth[5].unlink()
    (source / "notes.txt").write_text("not an image", encoding="utf-8")
    console, text = recorded()
    report = predict_files(source, NAME, tmp_path / "out", device="cpu", console=console)
    assert [path if isinstance(path, Path) else path.description for path in report.written] == [
        source / "a.nii.gz",
        "good",
    ]
    ((series, error),) = report.failed.items()
    assert isinstance(series, Series)
    assert (series.description, error.code) == ("gap", "GEOM_MISSING_SLICE")
    assert "failed MR · series 1 · 'gap'" in text.getvalue()
    assert "[GEOM_MISSING_SLICE]" in text.getvalue()
    seg = predict_files(source, NAME, tmp_path / "seg", device="cpu", output_format="seg", console=recorded()[0])
    assert seg.failed[source / "a.nii.gz"].code == "SEG_NO_SOURCE"
    assert [path.suffix for path in seg.written.values()] == [".dcm"]


def test_a_damaged_file_of_a_series_is_a_failure_and_the_output_is_not_the_input(tmp_path: Path) -> None:
    write_series(tmp_path / "in", Volume(made_bundle.made_volume(0)[0], OBLIQUE))
    last = tmp_path / "in" / "000"
    last.write_bytes(last.read_bytes()[:400])
    report = predict_files(tmp_path / "in", NAME, tmp_path / "out", device="cpu", console=recorded()[0])
    assert report.failed
    with pytest.raises(BundleError) as caught:
        predict_files(tmp_path / "in", NAME, tmp_path / "in", device="cpu")
    assert caught.value.code == "OUTPUT_TAKEN"


def test_seg_of_a_bundle_that_does_not_say_what_its_labels_mean(tmp_path: Path) -> None:
    bundle = made_bundle.copied_bundle(find_bundle(NAME), tmp_path)
    (bundle / "configs" / "segments.yaml").unlink()
    write_series(tmp_path / "in", Volume(made_bundle.made_volume(0)[0], OBLIQUE))
    with pytest.raises(BundleError) as caught:
        predict_files(tmp_path / "in", bundle, tmp_path / "out", device="cpu", output_format="seg")
    assert caught.value.code == "BUNDLE_NO_SEGMENTS"
    pictures = made_bundle.picture_bundle(tmp_path)
    with pytest.raises(BundleError) as caught:
        predict_files(tmp_path / "in", pictures, tmp_path / "out", device="cpu", output_format="seg")
    assert caught.value.code == "BUNDLE_PICTURES"


def test_metaimage_is_taken_as_nifti_is(tmp_path: Path) -> None:
    image = Volume(made_bundle.made_volume(0)[0], np.diag([-1.0, -1, 1, 1]))
    made_bundle.save_volume(tmp_path / "nifti" / "a.nii", image.array, image.affine_ras)
    (tmp_path / "meta").mkdir()
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image.array.T), str(tmp_path / "meta" / "a.mha"))
    found = [
        predict_files(tmp_path / name, NAME, tmp_path / f"out_{name}", device="cpu", console=recorded()[0]).written
        for name in ("nifti", "meta")
    ]
    first, second = (read_label_map(next(iter(written.values()))) for written in found)
    np.testing.assert_array_equal(first.array, second.array)
    np.testing.assert_array_equal(first.affine_ras, second.affine_ras)
