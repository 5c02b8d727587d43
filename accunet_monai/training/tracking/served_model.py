"""The model that MLflow serves: a bundle's folder, opened by this package. Nothing of it is pickled.

MLflow copies this file beside the bundle and runs it when the model is loaded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class BundleModel(PythonModel):
    """Segments one image: ``image`` (X, Y, Z) and ``affine`` (4, 4) voxel → RAS mm, or a picture (H, W, channels)."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle, whose weights are as its manifest says."""
        from accunet_monai.bundle import load_bundle

        self.predictor = load_bundle(context.artifacts["bundle"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads type hints
        """Label map on the image's own grid."""
        from accunet_monai.volumes import Volume

        if not self.predictor.takes_pictures:
            volume = Volume(np.asarray(model_input["image"]), np.asarray(model_input["affine"], dtype=np.float64))
            return self.predictor.predict(volume).label_map
        from PIL import Image

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            Image.fromarray(np.asarray(model_input["image"], dtype=np.uint8).squeeze()).save(path)
            return self.predictor.predict(path).label_map


set_model(BundleModel())
