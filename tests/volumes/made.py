"""Small NIfTI files made here, by nibabel or byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

LAS = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3.0, 7], [0, 0, 0, 1]])
PIR = np.array([[0, 0, 1.25, -11], [-0.8, 0, 0, 25], [0, -2.0, 0, 40], [0, 0, 0, 1.0]])


def oblique(degrees: float = 20.0) -> np.ndarray:
    """Voxels of 0.9×1.1×2.5 mm, turned about x and then about z."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([0.9, 1.1, 2.5])
    affine[:3, 3] = (-12.5, 4.25, 33.0)
    return affine


AFFINES = {"las": LAS, "pir": PIR, "oblique": oblique()}


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **fields: Any) -> Path:
    """A NIfTI-1 file with both forms set; ``fields`` are then put into the header as they are."""
    image = nib.Nifti1Image(array, LAS if affine is None else affine)
    image.set_sform(image.affine, code=2)
    image.set_qform(image.affine, code=1)
    nib.save(image, path)
    if fields:
        patch(path, **fields)
    return path


def patch(path: Path, **fields: Any) -> None:
    """Overwrites header fields of an uncompressed NIfTI-1 file without any of nibabel's care."""
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content, dtype=nib.Nifti1Header.template_dtype, count=1).copy()
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.tobytes()
    path.write_bytes(content)


def ramp(shape: tuple[int, ...] = (4, 5, 6), dtype: Any = np.int16) -> np.ndarray:
    """Every voxel another value, so that a flip or a permutation shows."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)
