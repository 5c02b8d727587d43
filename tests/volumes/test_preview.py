from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accunet_monai.volumes import contact_sheet, label_colour, read_label_map, read_volume, render_overlay


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def centre_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Mean (row, column) of the pixels of exactly this colour."""
    row, column = np.argwhere((pixels == colour).all(axis=-1)).mean(axis=0)
    return row, column


def test_overlay_colours_the_labels_and_leaves_the_rest_grey() -> None:
    labels = np.zeros((20, 30), dtype=int)
    labels[4:12, 5:15] = 1
    labels[12:18, 5:15] = 2
    pixels = render_overlay(np.full((20, 30), 50.0), labels, alpha=0.5, window=(0.0, 100.0))
    assert pixels.shape == (20, 30, 3)
    assert pixels.dtype == np.uint8
    outside = pixels[labels == 0]
    assert (outside == outside[0, 0]).all()
    for row, label in ((8, 1), (15, 2)):
        expected = np.array(label_colour(label)) * 0.5 + outside[0, 0] * 0.5
        np.testing.assert_allclose(pixels[row, 10], expected, atol=1)
        assert tuple(pixels[row, 5]) == label_colour(label)  # the rim is opaque


def test_the_reference_is_a_white_line_at_its_own_border() -> None:
    reference = np.zeros((20, 30), dtype=int)
    reference[5:15, 10:20] = 1
    pixels = render_overlay(np.zeros((20, 30)), np.zeros((20, 30), dtype=int), reference, window=(0.0, 1.0))
    ring = reference == 1
    ring[6:14, 11:19] = False
    np.testing.assert_array_equal((pixels == 255).all(axis=-1), ring)


def test_magnified_labels_stay_on_their_pixels() -> None:
    labels = np.zeros((4, 6), dtype=int)
    labels[1, 2] = 1
    pixels = render_overlay(np.zeros((4, 6)), labels, size=(40, 60), alpha=1.0, window=(0.0, 1.0))
    coloured = (pixels == label_colour(1)).all(axis=-1)
    assert coloured.sum() == 100
    assert coloured[10:20, 20:30].all()


def test_colour_pictures_are_shown_as_they_are() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 5, 3))
    np.testing.assert_array_equal(render_overlay(picture, np.zeros((6, 5), dtype=int)), picture)


@pytest.mark.parametrize(
    ("axis", "right", "down"), [(2, "R->left", "A->up"), (1, "R->left", "S->up"), (0, "A->left", "S->up")]
)
def test_the_sheet_shows_right_or_anterior_left_and_anterior_or_superior_up(
    tmp_path: Path, axis: int, right: str, down: str
) -> None:
    labels = np.zeros((30, 30, 30), dtype=np.uint8)
    low, high = slice(2, 8), slice(22, 28)
    across, up = (other for other in range(3) if other != axis)
    for label, place in ((1, {across: high, up: low}), (2, {across: low, up: low}), (3, {across: low, up: high})):
        labels[tuple(place.get(other, slice(None)) for other in range(3))] = label
    path = contact_sheet(np.zeros(labels.shape), labels, tmp_path / "s.png", axis=axis, columns=1, slices=[15])
    pixels = opened(path)[70:]  # below the legend, which shows the same colours
    first, second, third = (centre_of(pixels, label_colour(label)) for label in (1, 2, 3))
    assert first[1] < second[1] - 50, right
    assert abs(first[0] - second[0]) < 2
    assert third[0] < second[0] - 50, down
    assert abs(third[1] - second[1]) < 2


def test_the_sheet_has_the_patients_proportions(tmp_path: Path) -> None:
    labels = np.zeros((40, 40, 10), dtype=np.uint8)
    labels[10:30, 20, 2:7] = 1  # 20 mm across; 5 voxels of 4 mm up
    path = contact_sheet(
        np.zeros(labels.shape), labels, tmp_path / "s.png", axis=1, columns=1, slices=[20], spacing=(1, 1, 4)
    )
    rows, columns = np.nonzero((opened(path)[70:] == label_colour(1)).all(axis=-1))
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)
    assert np.ptp(columns) >= 80  # 20 of 40 mm of a tile of at least 160 pixels


def test_slices_are_taken_where_labels_or_reference_are(tmp_path: Path) -> None:
    labels, reference = np.zeros((2, 20, 20, 40), dtype=np.uint8)
    labels[5:15, 5:15, 20:23] = 1
    reference[5:15, 5:15, 23:26] = 1
    image = np.zeros(labels.shape)
    labelled = opened(contact_sheet(image, labels, tmp_path / "a.png", columns=3, slices=3, reference=reference))
    # three tiles in the middle third of 6 labelled slices each: 21, 23, 25 → one with label, two with the reference
    explicit = opened(
        contact_sheet(image, labels, tmp_path / "b.png", columns=3, slices=[21, 23, 25], reference=reference)
    )
    np.testing.assert_array_equal(labelled, explicit)


def test_an_empty_label_map_still_shows_the_volume(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((20, 20, 5))
    pixels = opened(contact_sheet(image, np.zeros((20, 20, 5), dtype=int), tmp_path / "s.png", title="nothing found"))
    assert pixels.shape[1] > 5 * 160
    assert not list(tmp_path.glob("*.partial"))


def test_wrong_arrays_and_slices_are_refused(tmp_path: Path) -> None:
    image, labels = np.zeros((5, 5, 5)), np.zeros((5, 5, 5), dtype=int)
    with pytest.raises(ValueError, match="3D arrays of one shape"):
        contact_sheet(image, labels[:4], tmp_path / "s.png")
    with pytest.raises(ValueError, match="slices must be some of 0 to 4"):
        contact_sheet(image, labels, tmp_path / "s.png", slices=[5])
    assert not list(tmp_path.iterdir())


def test_28_labels_have_28_colours() -> None:
    assert len({label_colour(label) for label in range(1, 29)}) == 28


def test_a_real_case(test_data: Path, tmp_path: Path) -> None:
    name = "hippocampus_003.nii.gz"
    volume = read_volume(test_data / "hippocampus/imagesTr" / name).reoriented("RAS")
    labels = read_label_map(test_data / "hippocampus/labelsTr" / name).reoriented("RAS")
    names = {1: "anterior hippocampus", 2: "posterior hippocampus"}
    path = contact_sheet(
        volume.array, labels.array, tmp_path / "s.png", spacing=volume.spacing, title=name, label_names=names
    )
    pixels = opened(path)
    for label in (1, 2):
        assert (pixels == label_colour(label)).all(axis=-1).sum() > 500
