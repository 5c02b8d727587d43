"""Label maps that belong to an image: files on its grid, or DICOM SEG, which is put onto its planes."""

from __future__ import annotations

import os
from pathlib import Path

from accunet_monai.volumes.dicom_seg_read import read_seg
from accunet_monai.volumes.reading import is_dicom, read_label_map
from accunet_monai.volumes.volume import Volume


def read_labels_of(path: str | os.PathLike[str], image: Volume) -> Volume:
    """A label map for an image: NIfTI, MetaImage or NRRD as it is stored, or a DICOM SEG on the image's own grid.

    Raises:
        VolumeError: what :func:`~accunet_monai.volumes.read_label_map` and
            :func:`~accunet_monai.volumes.read_seg` raise.
    """
    source = Path(path)
    if not source.is_file() or not is_dicom(source):
        return read_label_map(source)
    seg = read_seg(source, like=image)
    return Volume(seg.label_map, image.affine_ras, {"path": str(source), "format": "DICOM SEG"})
