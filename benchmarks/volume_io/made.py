"""A made CT of any size with the texture of a real one, as DICOM series and NIfTI files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom.uid import UID, ExplicitVRLittleEndian

from tests.corpus.classic import classic
from tests.corpus.encoding import to_bytes
from tests.corpus.phantom import Stack

SPACING = (0.75, 0.75)
STEP_MM = 1.25
NOISE_HU = 15.0
"""Of a usual abdominal CT; without noise a compressed series would be far too easy."""


def write_series(folder: Path, rows: int, columns: int, slices: int, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """One file a slice, named by random-looking numbers, so that names do not tell the order."""
    folder.mkdir(parents=True)
    for k, values in enumerate(_slices(rows, columns, slices)):
        stack = Stack(
            values=values[None].astype(np.float64),
            positions=np.array([[-192.0, -192.0, -300.0 + STEP_MM * k]]),
            row=np.array([1.0, 0, 0]),
            column=np.array([0, 1.0, 0]),
            spacing=SPACING,
        )
        (ds,) = classic(stack, first=k + 1)
        (folder / f"{k * 7919 % 100003:06d}.dcm").write_bytes(to_bytes(ds, syntax))
    return folder


def write_nifti(folder: Path, rows: int, columns: int, slices: int) -> dict[str, Path]:
    """The same as int16 (plain and compressed) and as float32; by name."""
    folder.mkdir(parents=True)
    array = np.stack(list(_slices(rows, columns, slices)), -1)
    affine = np.diag([-SPACING[1], -SPACING[0], STEP_MM, 1.0])
    paths = {name: folder / f"{name}" for name in ("int16.nii", "int16.nii.gz", "float32.nii")}
    for name, path in paths.items():
        image = nib.Nifti1Image(array.astype(np.float32 if "float32" in name else np.int16), affine)
        nib.save(image, path)
    return paths


def body_mask(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """(X, Y, Z) label map: an ellipse in every slice, of changing size, with a second label inside."""
    x, y = (
        np.linspace(-1, 1, size)[:, None] if n == 0 else np.linspace(-1, 1, size) for n, size in enumerate(shape[:2])
    )
    distance = np.sqrt((x / 0.7) ** 2 + (y / 0.5) ** 2)
    labels = np.zeros(shape, np.uint8)
    for k in range(shape[2]):
        labels[..., k] = distance < 0.6 + 0.3 * np.sin(k / 20)
    return labels


def _slices(rows: int, columns: int, slices: int) -> Iterator[npt.NDArray[np.int16]]:
    """(rows, columns) HU: air, a body of water and fat, a spine of bone, and noise."""
    random = np.random.default_rng(0)
    down, along = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)
    radius = np.sqrt((along / 0.9) ** 2 + (down / 0.65) ** 2)
    for k in range(slices):
        size = 0.95 + 0.05 * np.sin(k / 30)
        values = np.full((rows, columns), -1000.0)
        values[radius < size] = -90.0
        values[radius < 0.85 * size] = 45.0
        values[np.hypot(along, (down - 0.35) * 1.2) < 0.12] = 600.0
        noise = random.normal(scale=NOISE_HU, size=(rows, columns))
        yield np.clip(np.rint(values + noise), -1024, 3071).astype(np.int16)
