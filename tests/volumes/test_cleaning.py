"""Pieces and holes of labels, against label maps drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from accunet_monai.volumes.cleaning import clean_labels


def drawn(*rows: str) -> np.ndarray:
    """One slice, in the middle of three."""
    middle = np.array([[int(letter) if letter != "." else 0 for letter in row] for row in rows], dtype=np.uint8)
    return np.stack([np.zeros_like(middle), middle, np.zeros_like(middle)])


def test_only_the_largest_piece_of_each_label_stays() -> None:
    before = drawn("11..2", "11..2", ".....", "1..2.", "..1..")
    after = drawn("11..2", "11..2", ".....", ".....", ".....")
    np.testing.assert_array_equal(clean_labels(before, 1.0, largest_component=[1, 2]), after)
    one = clean_labels(before, 1.0, largest_component=[1])
    np.testing.assert_array_equal(one == 2, before == 2)


def test_corners_join_and_of_equal_pieces_the_first_stays() -> None:
    diagonal = drawn("1...", ".1..", "..1.", "....")
    np.testing.assert_array_equal(clean_labels(diagonal, 1.0, largest_component=[1]), diagonal)
    np.testing.assert_array_equal(clean_labels(drawn("1.1"), 1.0, largest_component=[1]), drawn("1.."))


@pytest.mark.parametrize(("voxel", "least", "kept"), [(2.0, 8.0, "11.."), (2.0, 8.1, "...."), (8.0, 9.0, "11..")])
def test_small_pieces_are_small_in_cubic_millimetres(voxel: float, least: float, kept: str) -> None:
    before = drawn("11.1", "11..")
    expected = drawn(kept, kept)
    np.testing.assert_array_equal(clean_labels(before, voxel, minimum_volume_mm3={1: least}), expected)


def test_holes_are_filled_but_not_what_opens_to_the_outside_nor_other_labels() -> None:
    flat = np.zeros((3, 5, 5), np.uint8)
    flat[:, 1:4, 1:4] = 1  # the same shell in three slices: a tube that is open at both ends
    flat[1, 2, 2] = 0
    before = flat.copy()
    before[1, 1, 2] = 2  # part of the wall belongs to another label
    np.testing.assert_array_equal(clean_labels(flat, 1.0, fill_holes=[1])[1, 2, 2], 1)
    np.testing.assert_array_equal(clean_labels(before, 1.0, fill_holes=[1]), before)  # it opens through that wall
    inner = flat.copy()
    inner[1, 2, 2] = 2
    np.testing.assert_array_equal(clean_labels(inner, 1.0, fill_holes=[1]), inner)
    tube = flat.copy()
    tube[:, 2, 2] = 0
    np.testing.assert_array_equal(clean_labels(tube, 1.0, fill_holes=[1]), tube)


def test_nothing_to_do_and_nothing_there() -> None:
    before = drawn("1.2.3")
    np.testing.assert_array_equal(clean_labels(before, 1.0), before)
    np.testing.assert_array_equal(clean_labels(before, 1.0, largest_component=[9], fill_holes=[8]), before)
    read_only = before.view()
    read_only.flags.writeable = False
    assert clean_labels(read_only, 1.0, minimum_volume_mm3={2: 2}).sum() == 4
    assert before.sum() == 6


@pytest.mark.parametrize("seed", range(5))
def test_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2], size=(12, 14, 10), p=[0.6, 0.25, 0.15]).astype(np.uint8)
    cleaned = clean_labels(labels, 1.0, largest_component=[1], minimum_volume_mm3={2: 4})
    everywhere = np.ones((3, 3, 3))
    pieces, _ = ndimage.label(labels == 1, everywhere)
    np.testing.assert_array_equal(cleaned == 1, pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))
    pieces, _ = ndimage.label(labels == 2, everywhere)
    np.testing.assert_array_equal(cleaned == 2, (labels == 2) & (np.bincount(pieces.ravel())[pieces] >= 4))
    mask = (rng.random((12, 14, 10)) > 0.4).astype(np.uint8)
    np.testing.assert_array_equal(clean_labels(mask, 1.0, fill_holes=[1]), ndimage.binary_fill_holes(mask))
