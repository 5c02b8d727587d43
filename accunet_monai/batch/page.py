"""One HTML page for people who look through results: a slider for each case, labels on and off; nothing from elsewhere.

A case is drawn once, as a part of the page, when its result is made; the page is these parts joined. Where there is a
reference, it can be looked at in the prediction's place, and so can what differs between the two.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from accunet_monai.bundle import Prediction
from accunet_monai.volumes import Volume, atomic_output, label_colour
from accunet_monai.volumes.preview import intensity_window

PAGE = "review.html"

MOST_SLICES = 48
"""Slices of a case that are in the page, evenly spread over all: with some 10 kB each, fifty cases take 25 MB."""

LONG_SIDE = 320
"""Pixels of a picture's longer side, so that small crops are large enough and large slices small enough."""

ALPHA = 130
"""Opacity of the labels, of 255."""

_PLANES = ("sagittal", "coronal", "axial")

_DIFFERENCES: Mapping[int, tuple[str, tuple[int, int, int]]] = {
    1: ("only in the prediction", (255, 90, 70)),
    2: ("only in the reference", (90, 170, 255)),
    3: ("another label", (240, 228, 66)),
}
"""What can be wrong with a pixel; the colours are told apart with every common colour vision."""


def write_case(
    prediction: Prediction,
    path: Path,
    title: str,
    labels: Mapping[int, str],
    reference: np.ndarray[Any, Any] | None = None,
    measures: Sequence[Sequence[str]] = (),
) -> Path:
    """Write the part of the page that shows one case.

    Slices are cut where voxels are longest, axially when they are alike, and shown as radiologists see them. The first
    one shown is that with most labels, or that with most voxels that differ from the reference.

    Args:
        prediction: of a volume or a picture.
        path: the file, overwritten.
        title: of the case.
        labels: label value → name, for the legend.
        reference: an expert's labels on the prediction's grid.
        measures: lines of a table to show with the case, the first one its head.
    """
    image, label_map, plane, aspect = _upright(prediction, prediction.label_map)
    layers = {"prediction": label_map}
    wanted = label_map
    if reference is not None:
        layers["reference"] = _upright(prediction, reference)[1]
        layers["difference"] = wanted = _difference(label_map, layers["reference"])
    chosen = np.unique(np.linspace(0, len(image) - 1, min(len(image), MOST_SLICES)).round().astype(int))
    window = intensity_window(image) if image.ndim == 3 else (0.0, 255.0)
    size = _shown_size(label_map.shape[1:], aspect)
    present = {int(label) for name in layers if name != "difference" for label in np.unique(layers[name])} - {0}
    legends = _legends(labels, present, reference is not None)
    data = {
        "slices": [int(index) for index in chosen],
        "images": [_grey(image[index], window, size) for index in chosen],
        "layers": {
            name: [_coloured(layer[index], size, name == "difference") for index in chosen]
            for name, layer in layers.items()
        },
        "first": _fullest(wanted if wanted.any() else label_map, chosen),
    }
    with atomic_output(path) as stream:
        stream.write(_case(title, plane, size, legends, measures, data).encode())
    return path


def write_page(path: Path, cases: Iterable[Path], title: str, reference: bool = False, note: str = "") -> Path:
    """Join the parts of cases to one page; read one after the other.

    Args:
        path: of the page.
        cases: what :func:`write_case` wrote.
        title: of the page.
        reference: whether the cases have a reference, so that one can choose what is shown.
        note: a sentence under the title.
    """
    choice = _CHOICE if reference else ""
    head = _HEAD.replace("CHOICE", choice).replace("NOTE", html.escape(note)).replace("TITLE", html.escape(title))
    with atomic_output(path) as stream:
        stream.write(head.encode())
        for case in cases:
            stream.write(case.read_bytes())
        stream.write(_FOOT.encode())
    return path


def _upright(
    prediction: Prediction, label_map: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str, float]:
    """Slices (n, rows, columns) of image and label map, the plane's name, and the height of a pixel over its width."""
    if not isinstance(prediction.image, Volume):
        picture = prediction.image
        grey = picture[0][None] if len(picture) == 1 else np.moveaxis(picture, 0, -1)[None]
        return grey, label_map[None], "picture", 1.0
    image = prediction.image.reoriented("RAS")
    labels = Volume(label_map, prediction.image.affine_ras).reoriented("RAS").array
    spacing = image.spacing
    axis = int(np.argmax(spacing)) if max(spacing) > 1.2 * float(np.median(spacing)) else 2
    across, up = (spacing[other] for other in range(3) if other != axis)

    def shown(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.moveaxis(array, axis, 0).swapaxes(1, 2)[:, ::-1, ::-1]  # superior or anterior up, right on the left

    return shown(image.array), shown(labels), _PLANES[axis], up / across


def _difference(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What is wrong with each pixel, as :data:`_DIFFERENCES` numbers it; 0 where nothing is."""
    code = np.where(expected == 0, 1, np.where(found == 0, 2, 3))
    return np.where(found == expected, 0, code).astype(np.uint8)


def _shown_size(shape: Sequence[int], aspect: float) -> tuple[int, int]:
    """(width, height) in pixels."""
    height, width = shape[0] * aspect, float(shape[1])
    scale = LONG_SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _fullest(label_map: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any]) -> int:
    """The place among the chosen slices of the one with most labels; the middle one where there are none."""
    counts = [int(np.count_nonzero(label_map[index])) for index in chosen]
    return int(np.argmax(counts)) if any(counts) else len(chosen) // 2


def _grey(plane: np.ndarray[Any, Any], window: tuple[float, float], size: tuple[int, int]) -> str:
    low, high = window
    scaled = np.clip((np.asarray(plane, np.float32) - low) / (high - low), 0, 1) * 255
    picture = Image.fromarray(np.ascontiguousarray(scaled.round().astype(np.uint8)))
    return _encoded(picture.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=80)


def _coloured(plane: np.ndarray[Any, Any], size: tuple[int, int], difference: bool) -> str:
    """Labels as a transparent PNG; an empty text for a slice without any."""
    if not plane.any():
        return ""
    pixels = np.zeros((*plane.shape, 4), np.uint8)
    for label in np.unique(plane[plane > 0]):
        pixels[plane == label] = (*(_DIFFERENCES[label][1] if difference else label_colour(int(label))), ALPHA)
    return _encoded(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).quantize(), "PNG", optimize=True)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _legends(labels: Mapping[int, str], present: set[int], reference: bool) -> str:
    names = {**{label: f"label {label}" for label in present}, **labels}
    entries = [(name, label_colour(label), label in present) for label, name in sorted(names.items())]
    legends = _legend("of-labels", entries)
    if reference:
        legends += _legend("of-difference", [(name, colour, True) for name, colour in _DIFFERENCES.values()])
    return legends


def _legend(kind: str, entries: Sequence[tuple[str, tuple[int, int, int], bool]]) -> str:
    items = "".join(
        f'<li class="{"" if there else "absent"}"><i style="background:rgb{colour}"></i>{html.escape(name)}</li>'
        for name, colour, there in entries
    )
    return f'<ul class="{kind}">{items}</ul>'


def _table(lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rows = [
        "<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in line) + "</tr>"
        for cell, line in zip(("th", *["td"] * (len(lines) - 1)), lines, strict=True)
    ]
    return f"<table>{''.join(rows)}</table>"


def _case(
    title: str,
    plane: str,
    size: tuple[int, int],
    legends: str,
    measures: Sequence[Sequence[str]],
    data: dict[str, Any],
) -> str:
    width, height = size
    many = len(data["slices"])
    return f"""<article>
<h2>{html.escape(title)}</h2>
<div class="stage" style="width:{width}px;height:{height}px">
<img alt="{plane} slice"><img class="labels" alt="labels"></div>
<label class="slider">{plane} <output></output><input type="range" min="0" max="{many - 1}" value="{data["first"]}"
 aria-label="slice of {html.escape(title)}"{" hidden" if many == 1 else ""}></label>
{legends}
{_table(measures)}
<script type="application/json">{json.dumps(data)}</script>
</article>
"""


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>TITLE</title>
<style>
body { background: #101216; color: #eceef2; font: 15px/1.4 system-ui, sans-serif; margin: 24px; }
header { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: baseline; margin-bottom: 20px; }
h1 { font-size: 20px; margin: 0; }
h2 { font-size: 15px; margin: 0 0 8px; overflow-wrap: anywhere; }
main { display: flex; flex-wrap: wrap; gap: 20px; align-items: flex-start; }
article { background: #1a1d23; padding: 14px; border-radius: 8px; width: 320px; }
.stage { position: relative; margin: 0 auto; background: #000; }
.stage img { position: absolute; inset: 0; width: 100%; height: 100%; }
.plain .labels { display: none; }
.slider { display: block; margin-top: 8px; color: #969ca6; }
.slider input { width: 100%; display: block; }
.slider input[hidden] { display: none; }
ul { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; padding: 0; margin: 8px 0 0; }
li i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; }
.absent { color: #969ca6; text-decoration: line-through; }
.of-difference, [data-layer=difference] .of-labels { display: none; }
[data-layer=difference] .of-difference { display: flex; }
table { border-collapse: collapse; width: 100%; margin-top: 8px; font-size: 13px; }
th { color: #969ca6; font-weight: normal; }
th, td { text-align: right; padding: 1px 0 1px 8px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
header p { flex-basis: 100%; margin: 0; color: #969ca6; }
fieldset { border: 0; margin: 0; padding: 0; display: flex; gap: 16px; }
footer { margin-top: 20px; color: #969ca6; }
</style>
</head>
<body data-layer="prediction">
<header><h1>TITLE</h1>
CHOICE<label><input type="checkbox" id="labels" checked> labels (key L)</label>
<p>NOTE</p></header>
<main>
"""

_CHOICE = """<fieldset aria-label="what is shown">
<label><input type="radio" name="layer" value="prediction" checked> prediction (key P)</label>
<label><input type="radio" name="layer" value="reference"> reference (key R)</label>
<label><input type="radio" name="layer" value="difference"> difference (key D)</label>
</fieldset>
"""

_FOOT = """</main>
<footer>The patient's right is on the left. Not a medical device.</footer>
<script>
const shows = [];
for (const article of document.querySelectorAll("article")) {
  const data = JSON.parse(article.querySelector("script").textContent);
  const [image, labels] = article.querySelectorAll(".stage img");
  const slider = article.querySelector("input"), output = article.querySelector("output");
  const show = () => {
    const n = Number(slider.value);
    const layer = (data.layers[document.body.dataset.layer] || data.layers.prediction)[n];
    image.src = data.images[n];
    labels.hidden = !layer;
    if (layer) labels.src = layer;
    output.textContent = data.slices.length > 1 ? data.slices[n] : "";
  };
  slider.addEventListener("input", show);
  article.querySelector(".stage").addEventListener("wheel", (event) => {
    event.preventDefault();
    slider.value = Number(slider.value) + Math.sign(event.deltaY);
    show();
  });
  show();
  shows.push(show);
}
const toggle = document.getElementById("labels");
const apply = () => document.body.classList.toggle("plain", !toggle.checked);
toggle.addEventListener("change", apply);
const layers = [...document.querySelectorAll("[name=layer]")];
const choose = (layer) => {
  layer.checked = true;
  document.body.dataset.layer = layer.value;
  for (const show of shows) show();
};
for (const layer of layers) layer.addEventListener("change", () => choose(layer));
document.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  const layer = layers.find((one) => one.value[0] === key);
  if (key === "l") { toggle.checked = !toggle.checked; apply(); }
  if (layer) choose(layer);
});
</script>
</body>
</html>
"""
