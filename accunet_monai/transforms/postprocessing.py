"""What is done to label maps after they are back on their image's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform

from accunet_monai.volumes.cleaning import clean_labels
from accunet_monai.volumes.labels import whole_numbers


class CleanLabelsd(MapTransform):
    """Drops small pieces of labels and all but their largest piece, and fills holes, label by label.

    See :func:`accunet_monai.volumes.cleaning.clean_labels`. Volumes in mm³ are of the tensor's own grid, so it stands
    after ``Invertd`` and means the same whatever the image's spacing.

    Args:
        keys: keys of label maps (1, X, Y, Z), MetaTensors.
        largest_component: labels of which only the largest piece stays.
        fill_holes: labels whose holes are filled.
        minimum_volume_mm3: smallest volume of a piece that stays; of all labels that occur, or label → mm³.
        allow_missing_keys: whether absent keys are passed over.

    Raises:
        ValueError: labels below 1 or negative volumes.
        TypeError: what lies under a key is no MetaTensor (1, X, Y, Z).
        VolumeError: ``LABEL_NOT_INTEGER`` for fractions.
    """

    def __init__(
        self,
        keys: KeysCollection,
        largest_component: Sequence[int] = (),
        fill_holes: Sequence[int] = (),
        minimum_volume_mm3: float | Mapping[int | str, float] = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        of_all = minimum_volume_mm3 if isinstance(minimum_volume_mm3, int | float) else 0.0
        by_label = {} if isinstance(minimum_volume_mm3, int | float) else minimum_volume_mm3
        self.of_all = float(of_all)
        self.by_label = {int(label): float(volume) for label, volume in by_label.items()}  # JSON's keys are text
        self.largest_component = tuple(int(label) for label in largest_component)
        self.fill_holes = tuple(int(label) for label in fill_holes)
        if min(self.of_all, *self.by_label.values(), 0.0) < 0:
            raise ValueError(f"volumes must not be negative, found {minimum_volume_mm3}")
        if any(label < 1 for label in (*self.largest_component, *self.fill_holes, *self.by_label)):
            raise ValueError("labels start at 1: 0 is the background")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cleans the label maps under ``keys``."""
        result = dict(data)
        for key in self.key_iterator(result):
            tensor = result[key]
            if not isinstance(tensor, MetaTensor) or tensor.ndim != 4 or tensor.shape[0] != 1:
                raise TypeError(f"{key!r} must be a MetaTensor (1, X, Y, Z) of labels")
            labels = whole_numbers(tensor.as_tensor().detach().cpu().numpy()[0])
            minimum = self.by_label or ({int(n): self.of_all for n in np.unique(labels) if n} if self.of_all else {})
            cleaned = clean_labels(
                labels,
                abs(float(torch.linalg.det(tensor.affine[:3, :3].double()))),
                minimum_volume_mm3=minimum,
                largest_component=self.largest_component,
                fill_holes=self.fill_holes,
            )
            changed = torch.from_numpy(cleaned[np.newaxis]).to(tensor.device, tensor.dtype)
            result[key] = MetaTensor(changed).copy_meta_from(tensor)
        return result
