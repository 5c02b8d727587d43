"""How label maps are cleaned, chosen where parts of the reference do not count."""

from __future__ import annotations

import numpy as np
import pytest

from accunet_monai.training.cleaning_choice import choose_cleaning, cleaning_scores


def test_ignored_voxels_do_not_count_but_are_cleaned_like_all_others() -> None:
    """Label 1 is found wholly, 8 voxels; a larger blob of 12 lies where nobody has annotated (9)."""
    reference = np.zeros((8, 6, 6), np.uint8)
    reference[1:3, 1:3, 1:3] = 1
    prediction = reference.copy()
    prediction[5:8, 1:3, 1:3] = 1
    reference[4:] = 9
    scores = cleaning_scores(prediction, reference, 1.0, [1], ignore_label=9)
    assert scores[1, "none"] == 1.0
    assert scores[1, "largest_component"] == 0.0  # the larger blob stays, and predictions are cleaned without reference
    assert choose_cleaning([scores], [1]) == {1: "none"}
    assert cleaning_scores(prediction, reference, 1.0, [1])[1, "none"] == pytest.approx(2 * 8 / (8 + 20))
