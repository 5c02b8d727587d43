"""Bundles: finding them, describing them, and running their inference on files without trusting their configs.

``monai.bundle run`` evaluates a whole config, expressions included. A :class:`Predictor` resolves only the literal
sections ``network_def``, ``preprocessing``, ``inferer`` and ``postprocessing``, and only targets named in
``ALLOWED_TARGETS``.
"""

from accunet_monai.bundle.finding import bundles_folder, find_bundle, find_images, image_cases, list_bundles
from accunet_monai.bundle.predictor import WEIGHTS, Prediction, Predictor, load_bundle
from accunet_monai.bundle.sections import (
    ALLOWED_TARGETS,
    LITERAL_SECTIONS,
    label_names,
    read_literal_sections,
    read_metadata,
)

__all__ = [
    "ALLOWED_TARGETS",
    "LITERAL_SECTIONS",
    "WEIGHTS",
    "Prediction",
    "Predictor",
    "bundles_folder",
    "find_bundle",
    "find_images",
    "image_cases",
    "label_names",
    "list_bundles",
    "load_bundle",
    "read_literal_sections",
    "read_metadata",
]
