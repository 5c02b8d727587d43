"""Bundles: finding them, describing them, and running their inference on files without trusting their configs.

``monai.bundle run`` evaluates a whole config, expressions included. A :class:`Predictor` resolves only the literal
sections ``network_def``, ``preprocessing``, ``inferer`` and ``postprocessing``, and only targets named in
``ALLOWED_TARGETS`` with arguments of bounded size. :func:`verify_bundle` looks at the whole folder.
"""

from accunet_monai.bundle.archive import unpack_bundle
from accunet_monai.bundle.contract import Breach, InputContract, propose_ranges
from accunet_monai.bundle.finding import bundles_folder, find_bundle, find_images, image_cases, list_bundles
from accunet_monai.bundle.manifest import WEIGHTS, Manifest, manifest_digest, read_manifest, write_manifest
from accunet_monai.bundle.plain import read_plain
from accunet_monai.bundle.predictor import Precision, Prediction, Predictor, Work, load_bundle
from accunet_monai.bundle.safety import bundle_problems, verify_bundle
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
    "Breach",
    "InputContract",
    "Manifest",
    "Precision",
    "Prediction",
    "Predictor",
    "Work",
    "bundle_problems",
    "bundles_folder",
    "find_bundle",
    "find_images",
    "image_cases",
    "label_names",
    "list_bundles",
    "load_bundle",
    "manifest_digest",
    "propose_ranges",
    "read_literal_sections",
    "read_manifest",
    "read_metadata",
    "read_plain",
    "unpack_bundle",
    "verify_bundle",
    "write_manifest",
]
