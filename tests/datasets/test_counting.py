"""Counts of labels per slice are those that counting one by one gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accunet_monai.datasets import count_labels


@given(seed=st.integers(0, 100), axis=st.integers(0, 2), offset=st.sampled_from([-3, 0, 250, 10**9]))
def test_counts_are_those_of_each_slice(seed: int, axis: int, offset: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (3, 4, 5)) * 2 + offset
    labels[0, 0, 0] = offset  # far apart where another is large
    values, counts = count_labels(labels, axis)
    assert values.tolist() == np.unique(labels).tolist()
    for plane, row in zip(np.moveaxis(labels, axis, 0), counts, strict=True):
        assert row.tolist() == [int((plane == value).sum()) for value in values]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_few_values_far_apart_take_no_table_of_all_between(dtype: type) -> None:
    labels = np.zeros((2, 3, 3), dtype)
    labels[1, 1, 1] = np.iinfo(dtype).max
    values, counts = count_labels(labels, 0)
    assert values.tolist() == [0, np.iinfo(dtype).max]
    assert counts.tolist() == [[9, 0], [8, 1]]
