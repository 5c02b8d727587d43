from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from accunet_monai.errors import VolumeError
from accunet_monai.volumes import PlaneStack


def affines(*positions: tuple[float, float, float]) -> np.ndarray:
    result = np.tile(np.diag([0.5, 0.75, 1.0, 1.0]), (len(positions), 1, 1))
    result[:, :3, 3] = positions
    return result


def stack(**changes: Any) -> PlaneStack:
    fields = {
        "array": np.arange(24, dtype=np.float32).reshape(4, 3, 2),
        "affines_ras": affines((1, 2, 3), (1, 4, 8)),
        "provenance": {"path": "somewhere"},
    }
    return PlaneStack(**{**fields, **changes})


def test_depths_are_along_the_first_normal() -> None:
    assert stack().depths.tolist() == [3, 8]
    assert len(stack()) == 2
    assert repr(stack()) == "PlaneStack(2 planes of 4×3, 5 mm deep)"


def test_it_is_read_only_and_keeps_no_hold_on_the_affines() -> None:
    given = affines((1, 2, 3), (1, 4, 8))
    planes = stack(affines_ras=given)
    given[0, 0, 0] = 9
    assert planes.affines_ras[0, 0, 0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        planes.array[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        planes.affines_ras[0, 0, 0] = 1
    with pytest.raises(TypeError):
        planes.provenance["path"] = "elsewhere"  # type: ignore[index]


def test_it_survives_pickling() -> None:
    planes = pickle.loads(pickle.dumps(stack()))
    np.testing.assert_array_equal(planes.array, stack().array)
    assert dict(planes.provenance) == {"path": "somewhere"}
    assert not planes.array.flags.writeable


def leaning() -> np.ndarray:
    result = affines((1, 2, 3), (1, 4, 8))
    result[1, :3, 2] = [0, 0.6, 0.8]
    return result


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"array": np.zeros((4, 3), np.float32)}, "PLANES_SHAPE"),
        ({"array": np.zeros((4, 3, 2))}, "PLANES_SHAPE"),
        ({"array": np.zeros((4, 3, 3), np.float32)}, "PLANES_SHAPE"),
        ({"array": np.zeros((4, 0, 2), np.float32)}, "PLANES_SHAPE"),
        ({"affines_ras": np.eye(4)}, "PLANES_SHAPE"),
        ({"array": np.full((4, 3, 2), np.nan, np.float32)}, "VOLUME_NONFINITE"),
        ({"affines_ras": affines((0, 0, 0), (0, 0, 5)) * [1, 1, 2.5, 1]}, "VOLUME_AFFINE"),
        ({"affines_ras": leaning()}, "VOLUME_AFFINE"),
        ({"affines_ras": affines((0, 0, 0), (0, np.inf, 5))}, "VOLUME_AFFINE"),
    ],
)
def test_what_is_no_stack_of_planes_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(VolumeError, match="somewhere") as refusal:
        stack(**changes)
    assert refusal.value.code == code
