"""Inferers that run a 2D network over the slices of 3D volumes."""

from accunet_monai.inferers.estimate import MemoryEstimate, estimate
from accunet_monai.inferers.slice_inferer import SliceInferer

__all__ = ["MemoryEstimate", "SliceInferer", "estimate"]
