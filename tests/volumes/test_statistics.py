from __future__ import annotations

import numpy as np
import pytest

from accunet_monai.errors import VolumeError
from accunet_monai.volumes import Volume, label_statistics
from tests.volumes.made import LAS


def test_counts_millilitres_and_centroids_by_hand() -> None:
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    labels[0, 0, 0] = labels[2, 1, 3] = 2  # mean index (1, 0.5, 1.5)
    labels[3, 4, 5] = 7
    rows = label_statistics(labels, Volume(labels, LAS), {2: "body", 3: "absent"})
    assert [(row["label"], row["name"], row["voxels"]) for row in rows] == [
        (2, "body", 2),
        (3, "absent", 0),
        (7, "label 7", 1),
    ]
    # LAS: 2 × 1.5 × 3 mm voxels, x = 30 - 2i, y = -20 + 1.5j, z = 7 + 3k
    assert [row["volume_ml"] for row in rows] == pytest.approx([0.018, 0.0, 0.009])
    assert rows[0]["centroid_ras"] == pytest.approx((28.0, -19.25, 11.5))
    assert rows[1]["centroid_ras"] is None
    assert rows[2]["centroid_ras"] == pytest.approx((24.0, -14.0, 22.0))


def test_the_numbers_do_not_depend_on_the_orientation() -> None:
    labels = (np.random.default_rng(0).random((4, 5, 6)) > 0.7).astype(np.uint8)
    volume = Volume(labels, LAS)
    turned = volume.reoriented("SPR")
    first, second = label_statistics(labels, volume)[0], label_statistics(turned.array, turned)[0]
    assert first["voxels"] == second["voxels"]
    assert first["centroid_ras"] == pytest.approx(second["centroid_ras"])


@pytest.mark.parametrize(
    ("shape", "dtype", "code"), [((4, 5), int, "LABEL_GRID"), ((4, 5, 6), float, "LABEL_NOT_INTEGER")]
)
def test_what_is_no_label_map_of_the_volume(shape: tuple[int, ...], dtype: type, code: str) -> None:
    with pytest.raises(VolumeError) as caught:
        label_statistics(np.zeros(shape, dtype), Volume(np.zeros((4, 5, 6)), LAS))
    assert caught.value.code == code
