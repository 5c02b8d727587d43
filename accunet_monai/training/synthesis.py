"""Labelled T1-like brain volumes made from the grey and white matter maps that nilearn carries, in SynthSeg's manner.

Each volume is a random deformation of one anatomy with random contrasts, so a network can be trained where no labelled
data are at hand. Source: Billot et al., SynthSeg: segmentation of brain MRI scans of any contrast and resolution
without retraining, Medical Image Analysis 86 (2023) 102789. What differs: tissues mix by their probabilities (partial
volume), and the order of the contrasts is that of a T1 image: CSF < grey matter < white matter.

Axis order is (X, Y, Z) in RAS everywhere; lengths are in mm; labels are 0 background, 1 CSF, 2 grey, 3 white matter.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from accunet_monai.errors import DatasetError
from accunet_monai.training.smooth_fields import blurred, smooth_fields
from accunet_monai.volumes import Grid, write_label_map

LABELS = {0: "background", 1: "CSF", 2: "grey matter", 3: "white matter"}

Array = NDArray[Any]
Range = tuple[float, float]

#: Raised whenever the same seed gives other volumes, so that datasets of an earlier version are made anew.
_FORMAT = 1


@dataclass(frozen=True)
class SynthesisSettings:
    """How far shapes, contrasts and disturbances vary; every range is drawn from uniformly, once a volume.

    Attributes:
        rotation: largest angle about each axis, degrees.
        scale: of each axis.
        shear: largest off-diagonal entry of the affine map.
        shift_mm: largest shift along each axis, mm.
        elastic_mm: standard deviation of the elastic displacement along each axis, mm.
        elastic_spacing_mm: distance of the elastic deformation's control points, mm; more than about 6 times
            ``elastic_mm`` keeps the map free of folds.
        csf: intensity of CSF, where white matter is 1.
        grey: where grey matter stands between CSF (0) and white matter (1).
        sharpness: exponent on the tissue probabilities before mixing; 1 keeps the maps' partial volume.
        texture: standard deviation of each tissue's slow change of intensity, relative.
        texture_spacing_mm: distance of the texture's control points, mm.
        bias: largest standard deviation of the logarithm of the bias field.
        bias_spacing_mm: distance of the bias field's control points, mm.
        blur_mm: standard deviation of the Gaussian blur, mm.
        noise: standard deviation of the Rician noise, where white matter is 1.
        stripped: chance that everything outside the brain is exactly 0, as in skull-stripped images.
        gain: intensity of white matter in the written image.
    """

    rotation: float = 12.0
    scale: Range = (0.9, 1.1)
    shear: float = 0.05
    shift_mm: float = 6.0
    elastic_mm: float = 2.5
    elastic_spacing_mm: float = 30.0
    csf: Range = (0.1, 0.45)
    grey: Range = (0.4, 0.8)
    sharpness: Range = (1.0, 2.0)
    texture: float = 0.04
    texture_spacing_mm: float = 16.0
    bias: float = 0.15
    bias_spacing_mm: float = 70.0
    blur_mm: Range = (0.0, 1.2)
    noise: Range = (0.0, 0.06)
    stripped: float = 0.7
    gain: Range = (300.0, 1500.0)

    def __post_init__(self) -> None:
        for name in ("scale", "csf", "grey", "sharpness", "blur_mm", "noise", "gain"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise DatasetError("SYNTHESIS_SETTINGS", f"{name}: expected 0 ≤ low ≤ high, found {low}, {high}.")
        for name, (_, high) in (("csf", self.csf), ("grey", self.grey)):
            if high >= 1:
                raise DatasetError("SYNTHESIS_SETTINGS", f"{name} must stay below white matter's 1, found {high}.")
        if min(self.scale[0], self.grey[0], self.sharpness[0], self.gain[0]) <= 0:
            raise DatasetError("SYNTHESIS_SETTINGS", "scale, grey, sharpness and gain must be above 0.")
        if min(self.elastic_spacing_mm, self.texture_spacing_mm, self.bias_spacing_mm) <= 0:
            raise DatasetError("SYNTHESIS_SETTINGS", "the control points' spacings must be above 0 mm.")


def tissue_maps(resolution_mm: int) -> tuple[Array, Array]:
    """Tissue probabilities of the MNI152 (ICBM 2009a) brain, from nilearn's packaged files (no network needed).

    CSF is what grey and white matter leave of the brain mask; outside the mask there is background only. The mask is
    nilearn's: the skull-stripped T1 template above a threshold. It is all that the maps take from that image.

    Args:
        resolution_mm: edge of the voxels, whole mm (nilearn resamples to no other).

    Returns:
        Probabilities (4, X, Y, Z) float32 of background, CSF, grey and white matter, which sum to 1, and the
        affine (4, 4) from voxel indices to RAS mm.

    Raises:
        DatasetError: ``NILEARN_MISSING``; ``SYNTHESIS_SETTINGS`` for a resolution that is no whole number ≥ 1.
    """
    maps, _, affine_ras = _templates(resolution_mm)
    return maps.copy(), affine_ras.copy()


def mni152_t1(resolution_mm: int) -> tuple[Array, Array, Array]:
    """The average T1 image of 152 people, skull-stripped, as nilearn carries it, with a reference of its tissues.

    Args:
        resolution_mm: edge of the voxels, whole mm (nilearn resamples to no other).

    Returns:
        Image (X, Y, Z) float32 from 0 to about 1; reference (X, Y, Z) uint8, the argmax of ``tissue_maps`` on the
        same grid; affine (4, 4) from voxel indices to RAS mm.

    Raises:
        DatasetError: as ``tissue_maps``.
    """
    maps, image, affine_ras = _templates(resolution_mm)
    return image.copy(), maps.argmax(0).astype(np.uint8), affine_ras.copy()


def synthesise(
    maps: Array, affine_ras: Array, seed: int | list[int], settings: SynthesisSettings | None = None
) -> tuple[Array, Array]:
    """One made volume on the maps' own grid: deformation, contrasts, texture, blur, bias field, noise.

    Args:
        maps: probabilities (4, X, Y, Z) of background, CSF, grey and white matter.
        affine_ras: (4, 4), voxel indices to RAS mm; only its voxel size is used.
        seed: fixes every draw.
        settings: ranges of the draws.

    Returns:
        Image (X, Y, Z) float32, not negative; label map (X, Y, Z) uint8, the argmax of the deformed maps.
    """
    settings = settings or SynthesisSettings()
    rng = np.random.default_rng(seed)
    spacing = np.linalg.norm(np.asarray(affine_ras)[:3, :3], axis=0)
    deformed = _deformed(maps, spacing, rng, settings)
    image = _contrast(deformed, spacing, rng, settings)
    return _disturbed(image, deformed[0] < 0.5, spacing, rng, settings), deformed.argmax(0).astype(np.uint8)


def shuffled(label_map: Array, seed: int | list[int]) -> Array:
    """The control experiment's label map: the same labels, each as often as before, at random voxels."""
    return np.random.default_rng(seed).permutation(label_map.reshape(-1)).reshape(label_map.shape)


def make_tissue_dataset(
    folder: str | os.PathLike[str],
    count: int,
    seed: int = 0,
    resolution_mm: int = 2,
    shuffle_labels: bool = False,
    progress: Callable[[int, int], None] | None = None,
    settings: SynthesisSettings | None = None,
) -> Path:
    """Make a training set laid out as the Medical Segmentation Decathlon's: imagesTr, labelsTr, dataset.json.

    The folder appears complete or not at all. One made earlier with the same arguments is kept as it is, one made
    with others is replaced; a folder that this function did not make is never touched. Volume k depends on seed and
    k alone, so a larger set begins with the smaller one's volumes.

    Args:
        folder: to make; its parents are made too.
        count: number of volumes, at least 1.
        seed: of all draws, not negative.
        resolution_mm: edge of the voxels, whole mm (nilearn resamples to no other).
        shuffle_labels: control experiment; the images stay the same, the labels are permuted within each volume.
        progress: called after each volume with the number made and ``count``.
        settings: ranges of the draws.

    Returns:
        The path of dataset.json.

    Raises:
        DatasetError: ``SYNTHESIS_SETTINGS``, ``NILEARN_MISSING``, or ``DATASET_FOLDER_OCCUPIED``.
    """
    if count < 1 or seed < 0:
        raise DatasetError("SYNTHESIS_SETTINGS", f"count must be ≥ 1 and seed ≥ 0, found {count} and {seed}.")
    settings = settings or SynthesisSettings()
    folder = Path(folder)
    recipe = _recipe(count, seed, resolution_mm, shuffle_labels, settings)
    made = _made_recipe(folder)
    if made == recipe:
        return folder / "dataset.json"
    if made is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(
            "DATASET_FOLDER_OCCUPIED", "it holds something else.", path=folder, hint="Name another folder."
        )
    maps, affine_ras = tissue_maps(resolution_mm)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        complete = Path(temporary) / "made"
        for index in range(count):
            image, label_map = synthesise(maps, affine_ras, [seed, index], settings)
            if shuffle_labels:
                label_map = shuffled(label_map, [seed, index, 1])
            write_image(complete / "imagesTr" / _name(index), image, affine_ras)
            write_label_map(complete / "labelsTr" / _name(index), label_map, Grid(label_map.shape, affine_ras))
            if progress is not None:
                progress(index + 1, count)
        (complete / "dataset.json").write_text(json.dumps(_description(recipe), indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(temporary) / "replaced")
        complete.rename(folder)
    return folder / "dataset.json"


# --- nilearn's templates ---


@lru_cache(maxsize=2)
def _templates(resolution_mm: int) -> tuple[Array, Array, Array]:
    """Probabilities (4, X, Y, Z), T1 image (X, Y, Z), affine (4, 4)."""
    if resolution_mm < 1 or resolution_mm != int(resolution_mm):
        raise DatasetError("SYNTHESIS_SETTINGS", f"resolution_mm must be a whole number ≥ 1, found {resolution_mm}.")
    resolution_mm = int(resolution_mm)  # 2.0 too, which nilearn refuses
    try:
        from nilearn import datasets
    except ImportError as error:
        raise DatasetError(
            "NILEARN_MISSING", "nilearn carries the MNI152 maps.", hint="Install accunet-monai[demo]."
        ) from error
    image = datasets.load_mni152_template(resolution=resolution_mm)
    mask = np.asarray(datasets.load_mni152_brain_mask(resolution=resolution_mm).dataobj) > 0
    grey, white = (
        np.clip(np.asarray(load(resolution=resolution_mm).dataobj, np.float32), 0, 1) * mask
        for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    total = np.maximum(grey + white, 1)  # resampling may overshoot
    grey, white = grey / total, white / total
    csf = np.clip(mask - grey - white, 0, None)  # rounding
    maps = np.stack([1.0 - mask, csf, grey, white]).astype(np.float32)
    return maps, np.asarray(image.dataobj, np.float32), np.asarray(image.affine, np.float64)


# --- shapes ---


def _deformed(maps: Array, spacing: Array, rng: np.random.Generator, settings: SynthesisSettings) -> Array:
    """The maps (4, X, Y, Z) under a random affine and elastic deformation; what comes from outside is background."""
    coordinates = _coordinates(maps.shape[1:], spacing, rng, settings)
    last = np.array(maps.shape[1:], np.float32)[:, None, None, None] - 1
    grid = np.stack(list((2 * coordinates / last - 1)[::-1]), -1)  # grid_sample wants −1…1 and the last axis first
    tissues = F.grid_sample(
        torch.from_numpy(maps[None, 1:]), torch.from_numpy(grid[None]), padding_mode="zeros", align_corners=True
    )[0].numpy()
    deformed: Array = np.concatenate([1 - tissues.sum(0, keepdims=True), tissues])
    return deformed


def _coordinates(
    shape: tuple[int, ...], spacing: Array, rng: np.random.Generator, settings: SynthesisSettings
) -> Array:
    """Voxel coordinates (3, X, Y, Z) float32 in the maps from which each voxel of the made volume is taken."""
    matrix = np.diag(1 / rng.uniform(*settings.scale, 3))
    matrix += rng.uniform(-settings.shear, settings.shear, (3, 3)) * (1 - np.eye(3))
    for (first, second), angle in zip(((0, 1), (0, 2), (1, 2)), rng.uniform(-1, 1, 3), strict=True):
        turn = np.eye(3)
        cosine, sine = (f(math.radians(angle * settings.rotation)) for f in (math.cos, math.sin))
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
        matrix = turn @ matrix
    shift = rng.uniform(-settings.shift_mm, settings.shift_mm, 3)
    centre = (np.array(shape) - 1) / 2
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).astype(np.float32)
    millimetres = (grid - centre[:, None, None, None]) * spacing[:, None, None, None]
    millimetres = np.einsum("ij,jxyz->ixyz", matrix, millimetres) + shift[:, None, None, None]
    millimetres += settings.elastic_mm * smooth_fields(3, shape, settings.elastic_spacing_mm / spacing, rng)
    coordinates: Array = millimetres / spacing[:, None, None, None] + centre[:, None, None, None]
    return coordinates.astype(np.float32)


# --- intensities ---


def _contrast(maps: Array, spacing: Array, rng: np.random.Generator, settings: SynthesisSettings) -> Array:
    """Image (X, Y, Z) of the tissues' drawn intensities, white matter 1, mixed by probability."""
    csf = rng.uniform(*settings.csf)
    grey = csf + rng.uniform(*settings.grey) * (1 - csf)
    mixed = np.clip(maps, 0, 1) ** np.float32(rng.uniform(*settings.sharpness))
    mixed /= np.maximum(mixed.sum(0), np.float32(1e-6))  # only keeps 0 / 0 away
    texture = smooth_fields(3, maps.shape[1:], settings.texture_spacing_mm / spacing, rng)
    levels = np.array([csf, grey, 1.0], np.float32)[:, None, None, None] * (1 + settings.texture * texture)
    image: Array = (mixed[1:] * levels).sum(0)
    return image


def _disturbed(
    image: Array, brain: Array, spacing: Array, rng: np.random.Generator, settings: SynthesisSettings
) -> Array:
    """The image after blur, bias field, Rician noise, perhaps skull-stripping, and the gain."""
    image = blurred(image, rng.uniform(*settings.blur_mm) / spacing)
    field = smooth_fields(1, image.shape, settings.bias_spacing_mm / spacing, rng)[0]
    image = image * np.exp(rng.uniform(0, settings.bias) * field)
    noise = rng.uniform(*settings.noise) * rng.standard_normal((2, *image.shape), dtype=np.float32)
    image = np.hypot(image + noise[0], noise[1])
    if rng.random() < settings.stripped:
        image = image * brain
    return (image * rng.uniform(*settings.gain)).astype(np.float32)


# --- files ---


def _recipe(
    count: int, seed: int, resolution_mm: int, shuffle_labels: bool, settings: SynthesisSettings
) -> dict[str, Any]:
    """Everything that fixes a dataset's content, as JSON gives it back."""
    recipe = {
        "format": _FORMAT,
        "count": count,
        "seed": seed,
        "resolution_mm": resolution_mm,
        "shuffle_labels": shuffle_labels,
        "settings": asdict(settings),
    }
    parsed: dict[str, Any] = json.loads(json.dumps(recipe))
    return parsed


def _made_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe of a dataset made here earlier; empty where files of it are gone, None where it is none of ours."""
    try:
        description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        recipe = description["synthesis"]
        files = [folder / case[key] for case in description["training"] for key in ("image", "label")]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(recipe, dict):
        return None
    return recipe if all(file.is_file() for file in files) else {}


def described(name: str, description: str, files: list[str]) -> dict[str, Any]:
    """A dataset.json in the Decathlon's form for images and tissue labels of these file names."""
    return {
        "name": name,
        "description": description,
        "licence": "derived from the ICBM 152 nonlinear atlases (2009)",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {str(value): label for value, label in LABELS.items()},
        "numTraining": len(files),
        "numTest": 0,
        "training": [{"image": f"imagesTr/{file}", "label": f"labelsTr/{file}"} for file in files],
        "test": [],
    }


def _description(recipe: dict[str, Any]) -> dict[str, Any]:
    """The content of dataset.json."""
    about = "T1-like volumes made from the MNI152 (ICBM 2009a) tissue maps that nilearn carries"
    files = [_name(index) for index in range(recipe["count"])]
    return {**described("Made brain tissues", about, files), "synthesis": recipe}


def _name(index: int) -> str:
    return f"tissue_{index:03d}.nii.gz"


def write_image(path: Path, image: Array, affine_ras: Array) -> None:
    """The image in whole numbers, as a scanner stores it, in a folder that is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.rint(image).clip(0, np.iinfo(np.int16).max).astype(np.int16)
    nib.save(nib.Nifti1Image(stored, affine_ras), path)
