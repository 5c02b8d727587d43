"""Draws the pictures of the documentation into docs/images: `python docs/make_pictures.py` (a minute on one core)."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from accunet_monai.evaluation import bland_altman, label_boxes, measure_case
from accunet_monai.training import BatchAugmentation
from accunet_monai.volumes import render_overlay

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images"
TILE = 112
DRAWS = 7


def main() -> None:
    """Draw all."""
    IMAGES.mkdir(exist_ok=True)
    draw_augmentation(IMAGES / "augmentation.png")
    draw_circles(IMAGES / "circles.png")
    draw_evaluation(IMAGES / "evaluation.png")


def draw_augmentation(path: Path) -> None:
    """Two rows: a made grey slice, then a made RGB picture, each followed by seven draws; labels outlined."""
    grey, label = made_slice()
    colour = torch.cat([grey, 0.4 * grey + 0.3, -0.5 * grey], 1)
    plain = BatchAugmentation(probability=1.0, seed=1)
    jitter = BatchAugmentation(probability=1.0, mirror=(0, 1), colour_jitter=0.3, seed=1)
    rows = [augmented_row(grey, label, plain), augmented_row(colour, label, jitter)]
    save(np.vstack(rows), path)


def made_slice(size: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """An oval with a grid in it and two organs: image (1, 1, size, size) standardised, label (1, 1, size, size)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    image = ((x / 0.85) ** 2 + (y / 0.95) ** 2 < 1).float()
    image = image * (0.7 + 0.3 * ((torch.sin(24 * x) > 0.8) | (torch.sin(24 * y) > 0.8)).float())
    label = torch.zeros(size, size, dtype=torch.int64)
    label[((x - 0.35) / 0.25) ** 2 + ((y + 0.3) / 0.18) ** 2 < 1] = 1
    label[((x + 0.3) / 0.2) ** 2 + ((y - 0.35) / 0.35) ** 2 < 1] = 2
    image = image + 0.5 * (label > 0)
    return ((image - image.mean()) / image.std())[None, None], label[None, None]


def augmented_row(image: torch.Tensor, label: torch.Tensor, augmentation: BatchAugmentation) -> np.ndarray:
    """The image and its draws side by side."""
    drawn, drawn_label = augmentation(image.repeat(DRAWS, 1, 1, 1), label.repeat(DRAWS, 1, 1, 1))
    images, labels = torch.cat([image, drawn]), torch.cat([label, drawn_label])
    pixels = ((images + 2) / 4.5 * 255).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    tiles = [
        render_overlay(
            picture if picture.shape[-1] == 3 else picture[..., 0],
            np.zeros(found[0].shape, np.uint8),
            found[0].numpy().astype(np.uint8),
            window=(0, 255) if picture.shape[-1] == 1 else None,
            size=(TILE, TILE),
        )
        for picture, found in zip(pixels, labels, strict=True)
    ]
    return np.hstack(tiles)


def draw_circles(path: Path) -> None:
    """Run the quick start's blocks in a temporary folder and keep the picture it draws."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "quickstart.md").read_text(encoding="utf-8"), re.M | re.S)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        namespace: dict[str, object] = {"__name__": "quickstart"}
        for block in blocks:
            exec(block, namespace)  # noqa: S102 (our own page)
        save(np.asarray(Image.open("circles.png")), path)


def draw_evaluation(path: Path) -> None:
    """The two plots of an evaluation, of balls in 30 cases that are predicted a bit off and, of label 2, too small."""
    rows = []
    draw = np.random.default_rng(0)
    where = np.indices((28, 28, 28))
    for case in range(30):
        reference, prediction = np.zeros((2, 28, 28, 28), np.uint8)
        for label, shrinks in ((1, 0.0), (2, 0.4)):
            centre, radius = np.array([7 + 13 * (label - 1), 14, 14]), draw.uniform(4, 6)
            moved, shrunk = centre + draw.normal(0, 0.5, 3), radius - shrinks + draw.normal(0, 0.15)
            for array, middle, size in ((reference, centre, radius), (prediction, moved, shrunk)):
                array[((where - middle[:, None, None, None]) ** 2).sum(axis=0) < size**2] = label
        rows += measure_case(prediction, reference, (1.5, 1.5, 1.5), {1: "one", 2: "two"}, case=f"case {case}")
    with tempfile.TemporaryDirectory() as folder:
        pictures = [Image.open(plot(rows, Path(folder) / plot.__name__)) for plot in (bland_altman, label_boxes)]
        width = max(picture.width for picture in pictures)
        sheet = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
        sheet.paste(pictures[0], (0, 0))
        sheet.paste(pictures[1], (0, pictures[0].height))
    save(np.asarray(sheet), path)


def save(pixels: np.ndarray, path: Path) -> None:
    """As a PNG with a palette, which is small."""
    Image.fromarray(pixels).quantize(96).save(path, optimize=True)


if __name__ == "__main__":
    main()
