"""The same settings give the same results as MONAI's SliceInferer, on made problems of every kind."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.inferer import SliceInferer as MonaiSliceInferer
from torch import Tensor

from accunet_monai.inferers import SliceInferer

EXAMPLES = int(os.environ.get("ACCUNET_EXAMPLES", "60"))
"""Made problems; 300 and more in a long run."""

CLOSE = 1e-5
"""Blending sums float32 products in another order than MONAI does; values are of the order of 1."""

FEW = settings(max_examples=EXAMPLES, deadline=None, derandomize="ACCUNET_REQUIRE" in os.environ)


def made_network(channels: int, classes: int, seed: int) -> torch.nn.Module:
    """Neither local nor linear, so that window borders and padding show."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, channels, 3, 3, generator=generator) / (3 * channels**0.5)

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            y = torch.tanh(F.conv2d(x, weight, padding=1)) + 0.1 * x.mean((1, 2, 3))[:, None, None, None]
            return y if condition is None else y * condition.mean(1, keepdim=True)

    return Network()


def made_volume(problem: dict[str, Any], seed: int = 1) -> Tensor:
    shape = (problem["batch"], problem["channels"], *problem["shape"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    axis = draw(st.integers(0, 2))
    plane = [size for dim, size in enumerate(shape) if dim != axis]
    overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.9])
    padding = draw(st.sampled_from([{"cval": -1.5}, {"cval": 0.0}, *({"padding_mode": m} for m in PADDING)]))
    # of these modes torch pads by less than the size (reflect), by no more than it (circular)
    largest = [
        {"reflect": 3 * size - 2, "circular": 3 * size}.get(str(padding.get("padding_mode")), 11) for size in plane
    ]
    return {
        "shape": shape,
        "batch": draw(st.integers(1, 2)),
        "channels": draw(st.integers(1, 2)),
        "classes": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 1000)),
        "arguments": {
            "roi_size": tuple(draw(st.just(-1) | st.integers(1, min(11, most))) for most in largest),
            "sw_batch_size": draw(st.integers(1, 7)),
            "overlap": draw(overlaps | st.tuples(overlaps, overlaps, overlaps)),
            "mode": draw(st.sampled_from(["constant", "gaussian"])),
            "sigma_scale": draw(st.sampled_from([0.125, 0.3, (0.3, 0.2, 0.1)])),
            "spatial_dim": axis,
            **padding,
        },
    }


# MONAI hands cval on to every padding mode, and torch takes one that is not 0 for "constant" only
PADDING = ("replicate", "reflect", "circular")


@FEW
@given(problems())
def test_equals_monais_slice_inferer(problem: dict[str, Any]) -> None:
    volume, arguments = made_volume(problem), problem["arguments"]
    network = made_network(problem["channels"], problem["classes"], problem["seed"])
    with torch.no_grad():
        theirs = MonaiSliceInferer(**arguments)(volume, network)
        logits, probabilities, label_map = (
            SliceInferer(output=output, **arguments)(volume, network)
            for output in ("logits", "probabilities", "label_map")
        )
    assert isinstance(theirs, Tensor)
    assert logits.shape == theirs.shape
    assert float((logits - theirs).abs().max()) <= CLOSE
    binary = problem["classes"] == 1
    expected = torch.sigmoid(theirs) if binary else torch.softmax(theirs, 1)
    assert float((probabilities - expected).abs().max()) <= CLOSE
    if binary:
        labels, tie = (theirs > 0).to(torch.uint8), theirs.abs() <= CLOSE
    else:
        first, second = theirs.topk(2, 1).values.split(1, 1)
        labels, tie = theirs.argmax(1, keepdim=True).to(torch.uint8), first - second <= CLOSE
    assert torch.equal(label_map[~tie], labels[~tie])


@settings(FEW, max_examples=max(EXAMPLES // 4, 10))
@given(problems(), st.booleans())
def test_several_outputs_and_a_condition_as_in_monai(problem: dict[str, Any], as_dict: bool) -> None:
    volume, condition, arguments = made_volume(problem), made_volume(problem, seed=2), problem["arguments"]
    made = [made_network(problem["channels"], classes, problem["seed"]) for classes in (problem["classes"], 2)]

    def network(x: Tensor, beside: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        first, second = (one(x, beside) for one in made)
        return {"segmentation": first, "edges": second} if as_dict else (first, second)

    with torch.no_grad():
        theirs = MonaiSliceInferer(**arguments)(volume, network, condition=condition)
        ours = SliceInferer(output="logits", **arguments)(volume, network, condition=condition)
    assert type(ours) is type(theirs)
    pairs = [(ours[key], theirs[key]) for key in theirs] if as_dict else list(zip(ours, theirs, strict=True))
    assert len(pairs) == 2
    for our, their in pairs:
        assert our.shape == their.shape
        assert float((our - their).abs().max()) <= CLOSE


def test_the_comparison_sees_a_difference() -> None:
    problem: dict[str, Any] = {"shape": (3, 8, 8), "batch": 1, "channels": 1}
    volume, network = made_volume(problem), made_network(1, 2, 0)
    theirs = MonaiSliceInferer(roi_size=(4, 4), overlap=0.5)(volume, network)
    ours = SliceInferer(roi_size=(4, 4), overlap=0.25, output="logits")(volume, network)
    assert isinstance(theirs, Tensor)
    assert float((ours - theirs).abs().max()) > 100 * CLOSE
