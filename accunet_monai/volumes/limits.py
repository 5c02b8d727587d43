"""How large a volume may be, and how much a compressed file can hold: checked before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from accunet_monai.errors import VolumeError

MAX_VOXELS = 2**31
"""1290 voxels along each axis, or 2048 slices of 1024 × 1024: more than a scanner gives, 8 GiB as float32."""

DEFLATE_LIMIT = 1032
"""No deflate stream expands more than 1032-fold (zlib technical details), so a header that promises more is false."""


def check_size(shape: Sequence[int], path: str | os.PathLike[str] | None = None) -> None:
    """Refuse shapes of more than ``MAX_VOXELS`` voxels.

    Raises:
        VolumeError: ``VOLUME_TOO_LARGE``.
    """
    if math.prod(shape) > MAX_VOXELS:
        message = f"{' × '.join(map(str, shape))} voxels are more than the {MAX_VOXELS} that are held in memory."
        raise VolumeError("VOLUME_TOO_LARGE", message, path=path)
