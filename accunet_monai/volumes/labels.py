"""Label values: whole numbers from 0, kept in the smallest unsigned integer type that holds them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from accunet_monai.errors import VolumeError

PathLike = str | os.PathLike[str]

LABEL_ROUNDING = 1e-4
"""How far a stored label may lie from a whole number: scale factors in NIfTI-1 are float32, so that 254 × (1/254) is
off by up to 1e-5; interpolated label maps have values far from whole numbers."""


def whole_numbers(values: npt.NDArray[Any], path: PathLike | None = None) -> npt.NDArray[Any]:
    """Finite numbers of any type as integers.

    Raises:
        VolumeError: ``LABEL_NOT_INTEGER`` for fractions and for numbers of 2³² and more in floating point.
    """
    if values.dtype.kind != "f":
        return values
    rounded = np.rint(values)
    distance = np.abs(values - rounded)
    if float(distance.max()) > LABEL_ROUNDING or float(np.abs(rounded).max()) >= 2**32:
        worst = tuple(int(i) for i in np.unravel_index(int(distance.argmax()), distance.shape))
        raise VolumeError(
            "LABEL_NOT_INTEGER", f"labels are whole numbers, found {values[worst]} at {worst}.", path=path
        )
    integers: npt.NDArray[Any] = rounded.astype(np.int64)
    return integers


def smallest_unsigned(labels: npt.NDArray[Any], path: PathLike | None = None) -> npt.NDArray[Any]:
    """A copy of integer or boolean labels in the smallest of uint8, uint16, uint32 and uint64 that holds them.

    Raises:
        VolumeError: ``LABEL_NOT_INTEGER`` for other types and negative numbers.
    """
    if labels.dtype.kind not in "biu":
        raise VolumeError("LABEL_NOT_INTEGER", f"labels are integers, found {labels.dtype}.", path=path)
    if labels.dtype.kind == "i" and int(labels.min()) < 0:
        raise VolumeError("LABEL_NOT_INTEGER", f"labels start at 0, found {int(labels.min())}.", path=path)
    highest = int(labels.max())
    return labels.astype(next(t for t in (np.uint8, np.uint16, np.uint32, np.uint64) if highest <= np.iinfo(t).max))
