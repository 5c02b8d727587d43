"""MONAI dictionary transforms over :mod:`accunet_monai.volumes`, usable by ``_target_`` in a bundle's config."""

from __future__ import annotations

from accunet_monai.transforms.io import LoadLabelMapd, LoadPictured, LoadVolumed, SaveLabelMapd

__all__ = ["LoadLabelMapd", "LoadPictured", "LoadVolumed", "SaveLabelMapd"]
