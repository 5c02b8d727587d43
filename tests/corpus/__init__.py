"""A made corpus of DICOM series that are easily read wrong, with the right outcome of each: ``TRAPS``."""

from __future__ import annotations

from tests.corpus import (
    damage_traps,
    enhanced_traps,
    file_traps,
    geometry_traps,
    pixel_traps,
    plane_traps,
    rescale_traps,
    split_traps,
    syntax_traps,
)
from tests.corpus.trap import TRAPS, Made, Trap

LAID_BY = (
    *(geometry_traps, plane_traps, file_traps, damage_traps, syntax_traps),
    *(pixel_traps, rescale_traps, split_traps, enhanced_traps),
)
"""The modules whose import fills ``TRAPS``."""

__all__ = ["LAID_BY", "TRAPS", "Made", "Trap"]
