"""Every way to run the shipped hippocampus network in float32 gives the same label maps of real images."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from accunet_monai.bundle import load_bundle
from accunet_monai.networks.deploy import optimize_for_inference
from tests.networks.compilation import COMPILE

TIE = 1e-4
"""Labels may differ only where the two best logits are closer than this share of the logits' spread."""
TIES = 1e-5
"""Such pixels may be at most this share of all."""

Path_ = Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]


def channels_last(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    network = network.to(memory_format=torch.channels_last)
    return lambda x: network(x.contiguous(memory_format=torch.channels_last))


def folded(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    return optimize_for_inference(network)


def scripted(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.jit.script(network)


def scripted_and_folded(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.jit.script(optimize_for_inference(network))


def exported(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()


def traced_by_dynamo(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.compile(network, fullgraph=True, backend="aot_eager")


def folded_and_compiled(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    return optimize_for_inference(network, example.shape, compile=True)


def onnx(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    file = io.BytesIO()
    axes = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(network, (example,), dynamo=True, dynamic_shapes=axes, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.fixture(scope="module")
def network_and_batches(test_data: Path) -> tuple[nn.Module, list[Tensor]]:
    """The shipped network and what its own inferer gives it of two images."""
    predictor = load_bundle("hippocampus_mri")
    network, batches = predictor.network, []

    def recording(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batches.append(x.detach().clone())
        return network(x, *args, **kwargs)

    predictor.network = recording
    for image in sorted((test_data / "hippocampus" / "imagesTr").glob("hippocampus_*.nii.gz"))[:2]:
        assert predictor.predict(image).label_map.any()
    sizes = batches[0].shape[1:]  # of one slicing axis: some paths take images of one size only
    return network, [batch for batch in batches if batch.shape[1:] == sizes]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "path",
    [
        channels_last,
        folded,
        scripted,
        scripted_and_folded,
        exported,
        traced_by_dynamo,
        pytest.param(folded_and_compiled, marks=COMPILE),
        onnx,
    ],
    ids=lambda p: p.__name__,
)
def test_the_label_maps_are_the_same(path: Path_, network_and_batches: tuple[nn.Module, list[Tensor]]) -> None:
    network, batches = network_and_batches
    torch._dynamo.reset()
    run = path(copy.deepcopy(network).eval(), batches[0])
    pixels = differing = 0
    with torch.inference_mode():
        for batch in batches:
            logits = network(batch)
            differs = run(batch).argmax(1) != logits.argmax(1)
            best, second = logits.topk(2, dim=1).values.unbind(1)
            gaps = (best - second)[differs] / (logits.max() - logits.min())
            assert (gaps <= TIE).all(), f"labels differ where logits do not tie, gaps up to {gaps.max():.1e}"
            pixels, differing = pixels + differs.numel(), differing + int(differs.sum())
    print(f"{path.__name__}: {differing} ties of {pixels} pixels fell to the other side")
    assert differing <= TIES * pixels
