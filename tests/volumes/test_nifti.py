from __future__ import annotations

import gzip
import hashlib
import itertools
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from accunet_monai.errors import VolumeError
from accunet_monai.volumes import Grid, Volume, read_grid, read_label_map, read_volume, write_label_map
from accunet_monai.volumes.geometry import lps_from_ras
from accunet_monai.volumes.nifti_header import Form
from tests.volumes.made import AFFINES, LAS, oblique, patch, ramp, save

CODES = {
    "FILE_MISSING",
    "NIFTI_EMPTY",
    "NIFTI_UNREADABLE",
    "NIFTI_TRUNCATED",
    "NIFTI_FORMS",
    "VOLUME_NOT_3D",
    "VOLUME_TOO_LARGE",
    "VOLUME_RGB",
    "VOLUME_COMPLEX",
    "VOLUME_NONFINITE",
    "VOLUME_AFFINE",
}


def refused(path: Path) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert caught.value.path == str(path)
    assert caught.value.message
    return caught.value


# Reading what is good


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_reads_as_nibabel_does(tmp_path: Path, affine: np.ndarray, name: str) -> None:
    path = save(tmp_path / name, ramp(), affine)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, ramp())
    np.testing.assert_array_equal(volume.affine_ras, nib.load(path).affine)
    assert volume.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert volume.provenance["format"] == "NIfTI-1"
    assert volume.provenance["path"] == str(path)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_places_voxels_where_simpleitk_does_in_lps(tmp_path: Path, affine: np.ndarray) -> None:
    path = save(tmp_path / "a.nii.gz", ramp(), affine)
    volume, image = read_volume(path), SimpleITK.ReadImage(str(path))
    for index in itertools.product((0, 3), (0, 4), (0, 5)):
        ours = lps_from_ras(volume.affine_ras) @ (*index, 1)
        np.testing.assert_allclose(ours[:3], image.TransformIndexToPhysicalPoint(index), atol=1e-4)
        assert volume.array[index] == image[index]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("kind_of_file", [nib.Nifti1Image, nib.Nifti2Image])
def test_every_number_type_and_byte_order(tmp_path: Path, order: str, kind: str, kind_of_file: type) -> None:
    image = kind_of_file(ramp(dtype=np.dtype(kind)), LAS, kind_of_file.header_class(endianness=order))
    image.set_data_dtype(np.dtype(kind))
    nib.save(image, tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").header.endianness == order
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.array, ramp())
    np.testing.assert_array_equal(volume.affine_ras, LAS)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.nii").array, ramp())


def test_scale_factors_are_applied(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp(), scl_slope=0.5, scl_inter=-1000.0)
    np.testing.assert_array_equal(read_volume(path).array, ramp() * 0.5 - 1000)
    patch(path, scl_slope=0.0)  # NIfTI-1: a slope of 0 means no scaling
    np.testing.assert_array_equal(read_volume(path).array, ramp())


def test_one_time_point_is_3d_and_more_are_not(tmp_path: Path) -> None:
    assert read_volume(save(tmp_path / "one.nii", ramp((4, 5, 6, 1)))).shape == (4, 5, 6)
    error = refused(save(tmp_path / "many.nii", ramp((4, 5, 6, 7))))
    assert error.code == "VOLUME_NOT_3D"
    assert "(4, 5, 6, 7)" in error.message
    assert refused(save(tmp_path / "flat.nii", ramp((4, 5)))).code == "VOLUME_NOT_3D"
    assert refused(save(tmp_path / "vector.nii", ramp((4, 5, 6, 1, 3)))).code == "VOLUME_NOT_3D"


def test_sform_before_qform_before_voxel_sizes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp())
    patch(path, srow_x=[-2, 0, 0, 99])
    assert read_volume(path).affine_ras[0, 3] == 99
    patch(path, sform_code=0)
    np.testing.assert_allclose(read_volume(path).affine_ras, LAS, atol=1e-6)
    patch(path, qform_code=0)
    np.testing.assert_array_equal(read_volume(path).affine_ras, nib.load(path).affine)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_declared_units_become_millimetres(tmp_path: Path, unit: int, factor: float) -> None:
    path = save(tmp_path / "a.nii", ramp(), xyzt_units=unit)
    np.testing.assert_allclose(read_volume(path).spacing, np.array([2, 1.5, 3]) * factor)
    written = write_label_map(tmp_path / "seg.nii", ramp(dtype=np.uint8), like=read_volume(path))
    np.testing.assert_array_equal(read_volume(written).affine_ras, read_volume(path).affine_ras)
    np.testing.assert_array_equal(nib.load(written).affine, nib.load(path).affine)


def test_compression_is_found_by_content(tmp_path: Path) -> None:
    plain, packed = save(tmp_path / "a.nii", ramp()), save(tmp_path / "b.nii.gz", ramp())
    plain.rename(tmp_path / "c.nii.gz")
    packed.rename(tmp_path / "d.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "c.nii.gz").array, read_volume(tmp_path / "d.nii").array)


def test_the_grid_alone_is_what_the_volume_has(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", ramp(), oblique())
    grid, volume = read_grid(path), read_volume(path)
    assert grid.shape == volume.shape
    np.testing.assert_array_equal(grid.affine_ras, volume.affine_ras)


def test_real_hippocampi_agree_with_nibabel(test_data: Path) -> None:
    images = sorted((test_data / "hippocampus/imagesTr").glob("*.nii.gz"))
    assert len(images) == 100
    for path in images:
        volume, theirs = read_volume(path), nib.load(path)
        np.testing.assert_array_equal(volume.array, theirs.get_fdata(dtype=np.float32))
        np.testing.assert_array_equal(volume.affine_ras, theirs.affine)
        labels = read_label_map(test_data / "hippocampus/labelsTr" / path.name)
        assert labels.array.dtype == np.uint8
        assert set(np.unique(labels.array)) == {0, 1, 2}


# Reading label maps


def test_whole_numbers_in_floating_point_are_labels(tmp_path: Path) -> None:
    labels = read_label_map(save(tmp_path / "a.nii", ramp(dtype=np.float32)))
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, ramp())


def test_labels_with_a_scale_factor_are_rounded_back(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp(dtype=np.int16) * 254, scl_slope=1 / 254, scl_inter=0.0)
    assert np.abs(read_volume(path, np.float64).array - ramp()).max() > 0  # inexact as stored
    np.testing.assert_array_equal(read_label_map(path).array, ramp())


@pytest.mark.parametrize("value", [0.5, 1.01, -1.0, 1e12])
def test_other_values_are_no_labels(tmp_path: Path, value: float) -> None:
    array = ramp(dtype=np.float64)
    array[1, 2, 3] = value
    with pytest.raises(VolumeError) as caught:
        read_label_map(save(tmp_path / "a.nii", array))
    assert caught.value.code == "LABEL_NOT_INTEGER"
    assert caught.value.path == str(tmp_path / "a.nii")


# Refusals


def test_missing_and_empty_files(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.nii").code == "FILE_MISSING"
    assert refused(tmp_path).code == "FILE_MISSING"
    (tmp_path / "a.nii").touch()
    assert refused(tmp_path / "a.nii").code == "NIFTI_EMPTY"
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(b""))
    assert refused(tmp_path / "b.nii.gz").code == "NIFTI_EMPTY"
    assert refused(save(tmp_path / "c.nii", ramp(), dim=[3, 4, 0, 6, 1, 1, 1, 1])).code == "NIFTI_EMPTY"


def test_colours_and_complex_numbers(tmp_path: Path) -> None:
    colours = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert refused(save(tmp_path / "rgb.nii.gz", colours)).code == "VOLUME_RGB"
    assert refused(save(tmp_path / "complex.nii.gz", ramp(dtype=np.complex64))).code == "VOLUME_COMPLEX"


def test_non_finite_voxels_as_stored_by_scaling_and_by_overflow(tmp_path: Path) -> None:
    array = ramp(dtype=np.float32)
    array[0, 1, 2] = np.inf
    error = refused(save(tmp_path / "a.nii", array))
    assert error.code == "VOLUME_NONFINITE"
    assert "1 of 120" in error.message
    assert "(0, 1, 2)" in error.message
    large = ramp(dtype=np.float64) + 1
    large[3, 0, 0] = 1e300
    path = save(tmp_path / "b.nii", large)
    assert refused(path).code == "VOLUME_NONFINITE"  # in float32
    assert read_volume(path, np.float64).array[3, 0, 0] == 1e300


@pytest.mark.parametrize("fields", [{"srow_x": [0, 0, 0, 0]}, {"srow_y": [np.nan] * 4}], ids=["singular", "nan"])
def test_unusable_affines(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert refused(save(tmp_path / "a.nii", ramp(), **fields)).code == "VOLUME_AFFINE"


def test_an_impossible_quaternion(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp(), sform_code=0, quatern_b=0.9, quatern_c=0.9, quatern_d=0.9)
    assert refused(path).code == "VOLUME_AFFINE"


def test_what_is_no_nifti(tmp_path: Path) -> None:
    for number, content in enumerate([b"hello", b"\x89PNG\r\n\x1a\n" + bytes(500), bytes(1000), b"\x1f\x8bnonsense"]):
        path = tmp_path / f"{number}.nii"
        path.write_bytes(content)
        assert refused(path).code == "NIFTI_UNREADABLE"
    save(tmp_path / "p.nii", ramp())
    patch(tmp_path / "p.nii", magic=b"ni1")
    error = refused(tmp_path / "p.nii")
    assert "pair" in error.message


@pytest.mark.parametrize("kept", [4, 200, 347, 348, 352, 353, 500, 591])
def test_uncompressed_files_cut_short(tmp_path: Path, kept: int) -> None:
    path = save(tmp_path / "a.nii", ramp())
    content = path.read_bytes()
    assert len(content) == 352 + 240
    path.write_bytes(content[:kept])
    assert refused(path).code == "NIFTI_TRUNCATED"


def test_a_gzip_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 4000, (6, 6, 6)).astype(np.int16))
    content = path.read_bytes()
    for kept in range(1, len(content)):  # the last 8 bytes are only the checksum and the length
        path.write_bytes(content[:kept])
        assert refused(path).code in ({"NIFTI_TRUNCATED"} if kept >= 18 else {"NIFTI_TRUNCATED", "NIFTI_UNREADABLE"})


def test_a_flipped_bit_in_compressed_voxels_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp())
    stored = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))  # no compression: every bit is a voxel's
    stored[-20] ^= 1
    path.write_bytes(stored)
    error = refused(path)
    assert error.code == "NIFTI_UNREADABLE"
    assert "CRC" in error.message


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["nii", "gz"])
def test_promised_sizes_are_not_allocated(tmp_path: Path, pack: Any) -> None:
    path = save(tmp_path / "a.nii", ramp(), dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    path.write_bytes(pack(path.read_bytes()))
    tracemalloc.start()
    assert refused(path).code == "NIFTI_TRUNCATED"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_memory_follows_the_compressed_content_and_not_the_promise(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp(), dim=[3, 500, 500, 200, 1, 1, 1, 1])  # 100 MB
    noise = np.random.default_rng(0).bytes(200_000)  # enough bytes that the promise is not absurd, far from 100 MB
    path.write_bytes(gzip.compress(path.read_bytes() + noise))
    tracemalloc.start()
    assert refused(path).code == "NIFTI_TRUNCATED"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def _outcome(path: Path) -> str:
    """The code of the refusal, or "read"; any other exception fails the test."""
    refusal = None
    try:
        volume = read_volume(path)
    except VolumeError as error:
        refusal = error
    if refusal is None:
        assert np.isfinite(volume.array).all()
        return "read"
    assert refusal.path == str(path)
    assert refusal.message
    assert refusal.code in CODES
    return refusal.code


def test_random_damage_of_the_header_is_read_or_refused_with_a_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(20240401)
    original = save(tmp_path / "a.nii", ramp((3, 4, 2), np.float32)).read_bytes()
    path, outcomes = tmp_path / "damaged.nii", set()
    for number in range(1200):
        content = bytearray(original)
        for position in rng.integers(0, 352 if number % 4 else len(content), rng.integers(1, 6)):
            content[position] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
        path.write_bytes(content if number % 3 else gzip.compress(content))
        outcomes.add(_outcome(path))
    # the damage is not so small that all is read, nor so large that nothing but one check is met
    assert {"read", "NIFTI_UNREADABLE", "NIFTI_TRUNCATED", "VOLUME_AFFINE", "VOLUME_NOT_3D"} <= outcomes


@pytest.mark.parametrize("kind_of_file", [nib.Nifti1Image, nib.Nifti2Image])
def test_every_header_field_with_extreme_values(tmp_path: Path, kind_of_file: type) -> None:
    original = kind_of_file(ramp((3, 4, 2), np.float32), LAS).to_bytes()
    path = tmp_path / "damaged.nii"
    fields = kind_of_file.header_class.template_dtype.fields
    for name, (field_type, start) in ((name, found[:2]) for name, found in fields.items()):
        for filling in (b"\x00", b"\xff", b"\x7f", b"\x80", struct.pack("<f", np.nan), struct.pack("<f", np.inf)):
            size = field_type.itemsize
            content = bytearray(original)
            content[start : start + size] = (filling * size)[:size]
            path.write_bytes(content)
            assert _outcome(path), name


def test_random_damage_of_a_compressed_stream(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    original = save(tmp_path / "a.nii.gz", ramp((3, 4, 2), np.float32)).read_bytes()
    path, outcomes = tmp_path / "damaged.nii.gz", []
    for _ in range(400):
        content = bytearray(original)
        content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content)
        outcomes.append(_outcome(path))
    assert outcomes.count("read") < 60  # the name, the time and the like in gzip's own header


# Writing


def _forms(path: Path) -> list[Any]:
    header = nib.load(path).header
    names = ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
    rows = [header[name].tolist() for name in ("srow_x", "srow_y", "srow_z")]
    return [header[name].item() for name in names] + rows + header["pixdim"][:4].tolist()


@pytest.mark.parametrize("name", ["seg.nii", "seg.nii.gz"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
@pytest.mark.parametrize("codes", [(1, 2), (0, 4), (3, 0), (0, 0)])
def test_both_forms_of_the_source_survive(
    tmp_path: Path, name: str, affine: np.ndarray, codes: tuple[int, int]
) -> None:
    source = save(
        tmp_path / "a.nii", ramp(), affine, qform_code=codes[0], sform_code=codes[1], srow_z=[0, 0.1, 3.25, 8]
    )
    if codes[1] == 4:
        patch(source, srow_x=affine[0], srow_y=affine[1], srow_z=affine[2])
    form: Form | None = "sform" if codes == (1, 2) else None  # there the two forms contradict each other
    like = read_volume(source) if form is None else read_grid(source, form=form)
    written = write_label_map(tmp_path / name, ramp(dtype=np.int64) % 3, like=like)
    assert _forms(written) == _forms(source)
    assert nib.load(written).shape == (4, 5, 6)
    np.testing.assert_array_equal(nib.load(written).affine, nib.load(source).affine)
    np.testing.assert_array_equal(read_label_map(written, form=form).array, ramp() % 3)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_a_volume_of_no_file_keeps_its_affine_for_all_readers(tmp_path: Path, affine: np.ndarray) -> None:
    written = write_label_map(tmp_path / "seg.nii.gz", ramp(dtype=np.uint8), like=Volume(ramp(), affine))
    image = nib.load(written)
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    np.testing.assert_allclose(image.get_qform(coded=False), affine, atol=1e-5)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    itk = SimpleITK.ReadImage(str(written))
    np.testing.assert_allclose(
        itk.TransformIndexToPhysicalPoint((3, 4, 5)), (lps_from_ras(affine) @ (3, 4, 5, 1))[:3], atol=1e-4
    )
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk).T, ramp())


def test_a_reoriented_volume_is_written_where_it_now_lies(tmp_path: Path) -> None:
    turned = read_volume(save(tmp_path / "a.nii", ramp(), LAS)).reoriented("RAS")
    written = write_label_map(tmp_path / "seg.nii", turned.array.astype(np.uint8), like=turned)
    np.testing.assert_allclose(nib.load(written).affine, turned.affine_ras, atol=1e-6)


def test_shear_goes_into_the_sform_alone(tmp_path: Path) -> None:
    sheared = LAS.copy()
    sheared[1, 2] = 0.7
    written = write_label_map(tmp_path / "seg.nii", ramp(dtype=np.uint8), like=Volume(ramp(), sheared))
    header = nib.load(written).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(nib.load(written).affine, sheared, atol=1e-6)


def test_nifti_2_sources_keep_float64_affines_and_long_axes_need_nifti_2(tmp_path: Path) -> None:
    affine = LAS.copy()
    affine[0, 3] = 1 / 3
    nib.save(nib.Nifti2Image(ramp(), affine), tmp_path / "a.nii")
    written = write_label_map(tmp_path / "seg.nii", ramp(dtype=np.uint8), like=read_volume(tmp_path / "a.nii"))
    assert nib.load(written).affine[0, 3] == 1 / 3
    long = np.zeros((40000, 1, 1), dtype=np.uint8)
    assert read_volume(write_label_map(tmp_path / "l.nii", long, like=Volume(long, LAS))).shape == (40000, 1, 1)


@pytest.mark.parametrize(
    ("highest", "stored"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65536, np.uint32), (2**32, np.uint64)]
)
def test_smallest_unsigned_type_label_intent_and_no_scaling(tmp_path: Path, highest: int, stored: type) -> None:
    labels = np.zeros((4, 5, 6), dtype=np.int64)
    labels[1, 2, 3] = highest
    path = write_label_map(tmp_path / "s.nii", labels, Volume(labels, LAS), "x" * 200)
    header = nib.Nifti1Header(path.read_bytes()[:348])  # as stored: nib.load takes the scale factors out
    assert header.get_data_dtype() == stored
    assert int(header["intent_code"]) == 1002
    assert (header["scl_slope"].item(), header["scl_inter"].item()) == (1.0, 0.0)
    assert header["descrip"].item() == b"x" * 79
    assert int(read_label_map(path).array.max()) == highest


def test_the_same_label_map_gives_the_same_bytes(tmp_path: Path) -> None:
    like = Volume(ramp(), LAS)
    first = write_label_map(tmp_path / "one.nii.gz", ramp(dtype=np.uint8), like).read_bytes()
    assert first == write_label_map(tmp_path / "two.nii.gz", np.asfortranarray(ramp()), like).read_bytes()
    assert first[4:8] == bytes(4)  # no time of writing in gzip's header
    assert zlib.crc32(gzip.decompress(first)) == int.from_bytes(first[-8:-4], "little")


@pytest.mark.parametrize(
    ("labels", "name", "code"),
    [
        (ramp((5, 4, 6)), "s.nii", "LABEL_GRID"),
        (ramp(dtype=np.float32), "s.nii", "LABEL_NOT_INTEGER"),
        (ramp() - 1, "s.nii", "LABEL_NOT_INTEGER"),
        (ramp(), "s.nrrd", "NIFTI_NAME"),
    ],
)
def test_refused_label_maps_leave_no_file(tmp_path: Path, labels: np.ndarray, name: str, code: str) -> None:
    with pytest.raises(VolumeError) as caught:
        write_label_map(tmp_path / "out" / name, labels, like=Volume(ramp(), LAS))
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_an_error_while_writing_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like = Grid((4, 5, 6), LAS)
    path = write_label_map(tmp_path / "s.nii.gz", ramp(dtype=np.uint8), like)
    before, seen = path.read_bytes(), []

    def full_disk(*_: Any) -> None:
        seen.extend(sorted(found.name for found in tmp_path.iterdir()))
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_label_map(path, np.zeros((4, 5, 6), dtype=np.uint8), like)
    assert [name for name in seen if name.endswith((".nii", ".nii.gz"))] == ["s.nii.gz"]
    assert len(seen) == 2
    assert [found.name for found in tmp_path.iterdir()] == ["s.nii.gz"]
    assert path.read_bytes() == before


def test_an_existing_file_can_be_protected(tmp_path: Path) -> None:
    like = Grid((4, 5, 6), LAS)
    path = write_label_map(tmp_path / "s.nii.gz", ramp(dtype=np.uint8), like)
    with pytest.raises(VolumeError) as caught:
        write_label_map(path, ramp(dtype=np.uint8), like, overwrite=False)
    assert caught.value.code == "FILE_EXISTS"
