"""MetaImage and NRRD: what ITK reads right is read, and what it passes over in silence is refused."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from accunet_monai.errors import VolumeError
from accunet_monai.volumes import read_grid, read_label_map, read_volume, write_label_map
from accunet_monai.volumes.geometry import lps_from_ras
from tests.volumes.made import AFFINES, oblique, ramp

META = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "1 2 3", "ElementSpacing": "2 1.5 3",
    "DimSize": "4 5 6", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
}  # fmt: skip
NRRD = {
    "type": "int16", "dimension": "3", "space": "left-posterior-superior", "sizes": "4 5 6",
    "space directions": "(2,0,0) (0,1.5,0) (0,0,3)", "space origin": "(1,2,3)", "encoding": "raw", "endian": "little",
}  # fmt: skip
VOXELS = ramp().tobytes(order="F")
AFFINE = np.array([[-2.0, 0, 0, -1], [0, -1.5, 0, -2], [0, 0, 3, 3], [0, 0, 0, 1]])


def meta(path: Path, voxels: bytes = VOXELS, **changes: str | None) -> Path:
    fields = {name: value for name, value in (META | changes).items() if value is not None}
    text = "".join(f"{name} = {value}\n" for name, value in fields.items())
    path.write_bytes(text.encode() + voxels)
    return path


def nrrd(path: Path, voxels: bytes = VOXELS, changes: dict[str, str | None] | None = None) -> Path:
    fields = {name: value for name, value in (NRRD | (changes or {})).items() if value is not None}
    text = "NRRD0004\n# made\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "author:=x\n\n"
    path.write_bytes(text.encode() + voxels)
    return path


def code_of(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert caught.value.path == str(path)
    assert caught.value.message
    return caught.value.code


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", ["mha", "mhd", "nrrd", "nhdr"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_what_simpleitk_writes_is_read_in_its_place(
    tmp_path: Path, affine: np.ndarray, ending: str, compressed: bool
) -> None:
    lps = lps_from_ras(affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(ramp().T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    path = tmp_path / f"a.{ending}"
    SimpleITK.WriteImage(image, str(path), compressed)
    volume, grid = read_volume(path), read_grid(path)
    np.testing.assert_array_equal(volume.array, ramp())
    np.testing.assert_allclose(volume.affine_ras, affine, atol=1e-9)
    np.testing.assert_array_equal(grid.affine_ras, volume.affine_ras)
    assert grid.shape == volume.shape
    assert volume.provenance["format"] == ("MetaImage" if ending.startswith("m") else "NRRD")
    labels = read_label_map(path)
    assert labels.array.dtype == np.uint8
    written = read_volume(write_label_map(tmp_path / "seg.nii.gz", labels.array, like=volume))
    np.testing.assert_array_equal(written.array, ramp())
    np.testing.assert_allclose(written.affine_ras, affine, atol=1e-5)


def test_headers_written_by_hand(tmp_path: Path) -> None:
    for path in (meta(tmp_path / "a.mha"), nrrd(tmp_path / "a.nrrd")):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, ramp())
        np.testing.assert_array_equal(volume.affine_ras, AFFINE)
    packed = zlib.compress(VOXELS)
    size = {"CompressedData": "True", "CompressedDataSize": str(len(packed))}
    fields = {name: value for name, value in META.items() if name != "ElementDataFile"}
    text = "".join(f"{name} = {value}\n" for name, value in (fields | size).items()) + "ElementDataFile = LOCAL\n"
    (tmp_path / "z.mha").write_bytes(text.encode() + packed)
    np.testing.assert_array_equal(read_volume(tmp_path / "z.mha").array, ramp())
    path = nrrd(tmp_path / "z.nrrd", gzip.compress(VOXELS), {"encoding": "gzip"})
    np.testing.assert_array_equal(read_volume(path).array, ramp())


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (-1, -1, 1)), ("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1))],
)
def test_each_space_of_a_patient_becomes_ras(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    volume = read_volume(nrrd(tmp_path / "a.nrrd", changes={"space": space}))
    np.testing.assert_array_equal(volume.affine_ras[:3], np.diag(signs) @ [[2, 0, 0, 1], [0, 1.5, 0, 2], [0, 0, 3, 3]])


def test_sheared_directions_stay_sheared(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", changes={"space directions": "(2,0,0) (0,1.5,0) (0,1,3)"})
    np.testing.assert_allclose(read_volume(path).affine_ras[:3, 2], (0, -1, 3), atol=1e-12)


@pytest.mark.parametrize("missing", ["ElementSpacing", "TransformMatrix", "Offset"])
def test_a_metaimage_that_does_not_say_where_it_lies(tmp_path: Path, missing: str) -> None:
    assert code_of(meta(tmp_path / "a.mha", **{missing: None})) == "IMAGE_PLACEMENT"


@pytest.mark.parametrize(
    "changes",
    [
        {"space": None},
        {"space directions": None},
        {"space origin": None},
        {"space": "scanner-xyz"},
        {"space": "3D-right-handed"},
        {"space units": '"cm" "cm" "cm"'},
    ],
)
def test_an_nrrd_that_does_not_say_where_it_lies_in_mm(tmp_path: Path, changes: dict[str, str | None]) -> None:
    path = nrrd(tmp_path / "a.nrrd", changes=changes)
    assert code_of(path) == "IMAGE_PLACEMENT"
    if changes != {"space": None}:  # the others ITK reads without a word
        SimpleITK.ReadImage(str(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"ElementToIntensityFunctionSlope": "2", "ElementDataFile": "LOCAL"},
        {"BinaryData": "False"},
        {"HeaderSize": "-1"},
        {"DistanceUnits": "um"},
    ],
)
def test_fields_that_change_the_meaning_of_the_voxels(tmp_path: Path, changes: dict[str, str]) -> None:
    fields = {name: value for name, value in META.items() if name != "ElementDataFile"} | changes
    fields["ElementDataFile"] = "LOCAL"
    text = "".join(f"{name} = {value}\n" for name, value in sorted(fields.items(), key=lambda f: f[0] > "ElementDatb"))
    ordered = text.replace("ElementDataFile = LOCAL\n", "") + "ElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(ordered.encode() + VOXELS)
    assert code_of(tmp_path / "a.mha") == "IMAGE_UNREADABLE"


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.raw", "sub/a.raw", "LIST", "a%03d.raw 1 6 1"])
def test_voxels_elsewhere_than_beside_the_header(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a.raw").write_bytes(VOXELS)
    assert code_of(meta(tmp_path / "in" / "a.mhd", b"", ElementDataFile=name)) == "IMAGE_UNREADABLE"
    path = nrrd(tmp_path / "in" / "a.nhdr", b"", {"data file": name})
    assert code_of(path) == "IMAGE_UNREADABLE"


def test_voxels_that_are_not_there(tmp_path: Path) -> None:
    assert code_of(meta(tmp_path / "a.mhd", b"", ElementDataFile="a.raw")) == "FILE_MISSING"
    assert code_of(tmp_path / "none.mha") == "FILE_MISSING"


def test_a_field_given_twice_or_with_another_separator(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(240))
    path = meta(tmp_path / "a.mha")
    path.write_bytes(b"ElementSpacing = 1 1 1\n" + path.read_bytes())
    assert code_of(path) == "IMAGE_UNREADABLE"
    path.write_bytes(b"ObjectType = Image\nElementDataFile : /etc/passwd\n" + path.read_bytes())
    assert code_of(path) in ("IMAGE_UNREADABLE", "IMAGE_PLACEMENT")


@pytest.mark.parametrize("removed", [1, 120, 240])
def test_files_cut_short(tmp_path: Path, removed: int) -> None:
    assert code_of(meta(tmp_path / "a.mha", VOXELS[:-removed])) == "IMAGE_TRUNCATED"
    assert code_of(nrrd(tmp_path / "a.nrrd", VOXELS[:-removed])) == "IMAGE_TRUNCATED"
    packed = gzip.compress(VOXELS)[: -removed // 20]
    assert code_of(nrrd(tmp_path / "z.nrrd", packed, {"encoding": "gzip"})) in ("IMAGE_TRUNCATED", "IMAGE_UNREADABLE")


def test_damaged_compressed_voxels_that_itk_reads_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ramp().T), str(path), True)
    content = bytearray(path.read_bytes())
    content[-30] ^= 0xFF
    path.write_bytes(content)
    assert not np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T, ramp())
    assert code_of(path) == "IMAGE_UNREADABLE"


@pytest.mark.parametrize("size", ["4000 5000 6000", "400 500 600"])
def test_promised_sizes_are_not_allocated(tmp_path: Path, size: str) -> None:
    expected = {"4000 5000 6000": "VOLUME_TOO_LARGE", "400 500 600": "IMAGE_TRUNCATED"}[size]
    assert code_of(meta(tmp_path / "a.mha", DimSize=size)) == expected
    assert code_of(nrrd(tmp_path / "a.nrrd", changes={"sizes": size})) == expected


def test_an_endless_stream_is_not_followed(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(200_000_000), 1)
    assert code_of(nrrd(tmp_path / "a.nrrd", bomb, {"encoding": "gzip"})) == "IMAGE_TRUNCATED"


def test_several_values_per_voxel_and_other_numbers_of_axes(tmp_path: Path) -> None:
    for array, vector, code in (
        (np.zeros((6, 5, 4, 3), np.uint8), True, "VOLUME_RGB"),
        (np.zeros((6, 5, 4, 2), np.float32), True, "VOLUME_NOT_3D"),
        (np.zeros((2, 6, 5, 4), np.float32), False, "VOLUME_NOT_3D"),
        (np.zeros((5, 4), np.float32), False, "VOLUME_NOT_3D"),
    ):
        path = tmp_path / "a.mha"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=vector), str(path))
        assert code_of(path) == code
    axes = {"dimension": "4", "sizes": "4 5 3 2", "kinds": "domain domain domain list"}
    path = nrrd(tmp_path / "a.nrrd", changes=axes | {"space directions": "(2,0,0) (0,1.5,0) (0,0,3) none"})
    assert code_of(path) == "VOLUME_NOT_3D"
    with pytest.raises(VolumeError, match="no time point 1"):
        read_volume(meta(tmp_path / "b.mha"), time_point=1)


def test_what_is_neither(tmp_path: Path) -> None:
    for number, content in enumerate([b"", b"hello", bytes(1000), b"NRRD0004\n", b"ObjectType = Image\n"]):
        for ending in ("mha", "nrrd"):
            path = tmp_path / f"{number}.{ending}"
            path.write_bytes(content)
            assert code_of(path) in ("IMAGE_UNREADABLE", "IMAGE_PLACEMENT")


def test_random_damage_is_read_or_refused_with_a_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    codes = set()
    for make in (meta(tmp_path / "o.mha"), nrrd(tmp_path / "o.nrrd", gzip.compress(VOXELS), {"encoding": "gzip"})):
        original = make.read_bytes()
        path = tmp_path / f"damaged{make.suffix}"
        for _ in range(300):
            content = bytearray(original)
            for position in rng.integers(0, len(content), rng.integers(1, 4)):
                content[position] = rng.choice([0, 10, 32, 45, 48, 57, 0x7F, 0xFF, rng.integers(256)])
            path.write_bytes(content)
            try:
                codes.add("read" if np.isfinite(read_volume(path).array).all() else "not finite")
            except VolumeError as error:
                codes.add(error.code)
    assert {"read", "IMAGE_UNREADABLE", "IMAGE_PLACEMENT"} <= codes
    assert "not finite" not in codes


def test_oblique_world_coordinates_are_those_of_itk(tmp_path: Path) -> None:
    lps = lps_from_ras(oblique(33))
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(ramp().T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    volume = read_volume(tmp_path / "a.mha")
    for index in np.ndindex(4, 5, 6):
        point = np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index])) * (-1, -1, 1)
        assert np.abs((volume.affine_ras @ (*index, 1))[:3] - point).max() < 1e-6
