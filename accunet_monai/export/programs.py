"""Writing a network as a program, opening one, and telling whether it still computes what the network does."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accunet_monai.errors import BundleError, NetworkError
from accunet_monai.networks import ACCUNet

PRECISIONS = {
    "torchscript": ("float32", "bfloat16"),
    "pt2": ("float32", "bfloat16"),
    "onnx": ("float32", "int8"),
}
"""Format → its precisions. PyTorch quantises convolutions only with torchao, which is not among our packages;
onnxruntime has no bfloat16 convolution on the CPU."""

DESCRIPTION = "accunet.json"
"""Name of the JSON text in each file (extra file, or ONNX metadata) that says what the program is and takes."""

FLOAT32_DIFFERENCE = 1e-4
"""How far a float32 file's output may lie from the network's, as a share of its spread: sums in another order."""

REDUCED_DIFFERENCE = 1.0
"""The same for bfloat16 and int8, on average over an image. The made images are noise to a network, and on noise it
amplifies rounding; this only tells a file that is broken. What a lower precision costs, Dice on real cases says."""

PT2_SMALLEST = 17
"""``torch.export`` takes an axis of length 1 for a constant; the deepest level has that length up to 16 pixels."""

NOTHING = "Nothing was written."

_SIZES = ((1, 32, 48, 32), (2, 35, 51, 19), (1, 17, 40, 33))
_SMALL = (2, 16, 5, 9)

Run = Callable[[Tensor], Tensor]


class Program(nn.Module):
    """What is written: a network that ends in logits, or in the sigmoid of one class or softmax of several."""

    def __init__(self, network: nn.Module, probabilities: bool) -> None:
        super().__init__()
        self.network = network
        self.probabilities = probabilities

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, *spatial) → (N, classes, *spatial)."""
        logits: Tensor = self.network(image)
        if not self.probabilities:
            return logits
        return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, 1)


def program_bytes(program: Program, description: dict[str, Any], batches: Sequence[Tensor] = ()) -> bytes:
    """The file's content.

    Args:
        program: in evaluation mode.
        description: says the format, and is stored in the file.
        batches: images (N, C, *spatial) by which an ONNX program is quantised to int8; none leaves it as it is.

    Raises:
        BundleError: ``EXPORT_FAILED`` with the first line of what PyTorch said.
    """
    text = json.dumps(description)
    image = _made_images(program.network, description)[1]
    axes = _axes(program.network, description)
    buffer = io.BytesIO()
    try:
        with _quiet(), torch.no_grad():
            if description["format"] == "torchscript":
                torch.jit.save(torch.jit.script(program), buffer, _extra_files={DESCRIPTION: text})
            elif description["format"] == "pt2":
                exported = torch.export.export(program, (image,), dynamic_shapes=(axes,))
                torch.export.save(exported, buffer, extra_files={DESCRIPTION: text})
            else:
                buffer.write(_onnx_bytes(program, image, axes, batches, text))
    except Exception as error:  # each exporter has errors of its own, of many types
        first = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        message = f"the network has no form as {description['format']}: {first[0][:300]}"
        raise BundleError("EXPORT_FAILED", message) from error
    return buffer.getvalue()


def open_program(path: str | os.PathLike[str], format: str) -> tuple[Run, dict[str, Any]]:  # noqa: A002
    """A written program as a function of an image (N, C, *spatial) float32, and its description.

    Raises:
        BundleError: ``EXPORT_FORMAT`` for an unknown format, ``EXPORT_PACKAGES`` without onnxruntime.
    """
    check_request(format)
    extra: dict[str, Any] = {DESCRIPTION: ""}
    run: Run
    with _quiet(), Path(path).open("rb") as file:
        if format == "torchscript":
            run = torch.jit.load(file, _extra_files=extra).eval()  # type: ignore[no-untyped-call]
        elif format == "pt2":
            run = torch.export.load(io.BytesIO(file.read()), extra_files=extra).module()
        else:
            run, extra = _onnx_session(file.read())
    return _without_gradient(run), json.loads(extra[DESCRIPTION])


def compared(run: Run, program: Program, description: dict[str, Any], path: Path) -> float:
    """How far a file's output lies from a program's on made images, as a share of the spread.

    Args:
        run: the file, opened again.
        program: the bundle's own network as a program.
        description: the file's.
        path: of the file, for the message.

    Returns:
        The largest difference of float32, the mean difference of lower precisions, of the worst image.

    Raises:
        NetworkError: ``EXPORT_DIFFERS`` for other shapes, for more than the tolerance or no number at all, and for a
            file that does not run.
    """
    exact = description["precision"] == "float32"
    worst, tolerance = 0.0, FLOAT32_DIFFERENCE if exact else REDUCED_DIFFERENCE
    expected_of = _without_gradient(program)
    for image in _made_images(program.network, description):
        expected = expected_of(image)
        try:
            found = run(image)
        except Exception as error:  # onnxruntime has errors of its own, of many types
            first = str(error).strip().splitlines()[0][:300]
            raise NetworkError(
                "EXPORT_DIFFERS", f"the file does not run on {tuple(image.shape)}: {first}.", path=path, hint=NOTHING
            ) from error
        difference = float("nan")
        if found.shape == expected.shape:
            apart = (found - expected).abs()
            spread = float(expected.max() - expected.min()) or 1.0
            difference = float(apart.max() if exact else apart.mean()) / spread
        if not difference <= tolerance:
            raise NetworkError(
                "EXPORT_DIFFERS",
                f"for an image {tuple(image.shape)} the file gives {tuple(found.shape)} and the network "
                f"{tuple(expected.shape)}, {difference:.2g} of the spread apart; at most {tolerance:g} is expected.",
                path=path,
                hint=NOTHING,
            )
        worst = max(worst, difference)
    return worst


def check_request(format: str, precision: str = "float32", dataset_dir: object = "") -> None:  # noqa: A002
    """Refuse what cannot be written or opened, with the errors that :func:`export_bundle` names."""
    if format not in PRECISIONS:
        raise BundleError("EXPORT_FORMAT", f"no format {format!r}.", hint=f"There are {', '.join(PRECISIONS)}.")
    if precision not in PRECISIONS[format]:
        hint = f"There are {', '.join(PRECISIONS[format])}."
        raise BundleError("EXPORT_PRECISION", f"{format} cannot be written in {precision!r}.", hint=hint)
    if precision == "int8" and dataset_dir is None:
        message = "int8 is calibrated on training cases of a dataset."
        raise BundleError("EXPORT_CALIBRATION", message, hint="Give --dataset_dir.")
    if format == "onnx":
        missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            message, hint = f"ONNX needs {', '.join(missing)}.", "pip install 'accunet-monai[export]'"
            raise BundleError("EXPORT_PACKAGES", message, hint=hint)


def _axes(network: nn.Module, description: dict[str, Any]) -> dict[int, Any]:
    """The axes that are free, as ``torch.export`` names them; a network made for one size has only the batch."""
    names = ("depth", "height", "width")[-description["spatial_dims"] :]
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    for axis, (name, fixed) in enumerate(zip(names, _fixed_shape(network, len(names)), strict=True), start=2):
        if not fixed:
            axes[axis] = torch.export.Dim(name, min=PT2_SMALLEST)
    return axes


def _fixed_shape(network: nn.Module, spatial_dims: int) -> list[int]:
    """The sizes an ACC-UNet with ``input_shape`` insists on, folded or not; 0 where any is taken."""
    found = [part.input_shape for part in network.modules() if isinstance(part, ACCUNet)]
    return found[0] if found else [0] * spatial_dims


def _onnx_bytes(
    program: Program, image: Tensor, axes: dict[int, Any], batches: Sequence[Tensor], description: str
) -> bytes:
    """An ONNX model without the exporter's notes on each node, longer than the weights, and without made-up biases."""
    import onnx

    output = "probabilities" if program.probabilities else "logits"
    exported = torch.onnx.export(
        program,
        (image,),
        dynamo=True,
        optimize=False,  # takes longest; onnxruntime does it when it opens the file
        verbose=False,
        input_names=["image"],
        output_names=[output],
        dynamic_shapes=(axes,),
    )
    if exported is None:
        raise RuntimeError("torch.onnx gave no program")
    model = exported.model_proto
    parameters = {parameter.name for parameter in model.graph.initializer}
    for node in model.graph.node:
        del node.metadata_props[:]
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] not in parameters:
            del node.input[2]  # onnxscript 0.7 makes zeros for a 3D convolution without bias, in a shape that is none
    if batches:
        model = onnx.load_from_string(_quantised(model, batches))
    onnx.helper.set_model_props(model, {DESCRIPTION: description})
    content: bytes = model.SerializeToString()
    return content


def _quantised(model: Any, batches: Sequence[Tensor]) -> bytes:
    """The model in int8: weights with one scale a channel, feature maps with one scale each, found on ``batches``."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": _as_array(batch)}

    with TemporaryDirectory() as folder:
        original, prepared, quantised = (
            str(Path(folder) / f"{name}.onnx") for name in ("original", "prepared", "int8")
        )
        onnx.save(model, original)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            Batches(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return Path(quantised).read_bytes()


def _onnx_session(content: bytes) -> tuple[Run, dict[str, Any]]:
    """An ONNX model on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": _as_array(image)})[0])

    return run, session.get_modelmeta().custom_metadata_map


def _as_array(image: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(image.detach().cpu().numpy())


def _made_images(network: nn.Module, description: dict[str, Any]) -> list[Tensor]:
    """Smooth random images of several batch and spatial sizes, the smallest one last."""
    generator = torch.Generator().manual_seed(0)
    spatial_dims, channels = description["spatial_dims"], int(description["input"]["num_channels"])
    mode = "bicubic" if spatial_dims == 2 else "trilinear"
    images = []
    for batch, *full in (*_SIZES, _SMALL) if description["smallest_size"] == 1 else _SIZES:
        fixed = _fixed_shape(network, spatial_dims)
        size = [known or free for known, free in zip(fixed, full[:spatial_dims], strict=True)]
        coarse = torch.randn(batch, channels, *[6] * spatial_dims, generator=generator)
        images.append(F.interpolate(coarse, size, mode=mode))
    return images


def _without_gradient(run: Run) -> Run:
    def call(image: Tensor) -> Tensor:
        with torch.no_grad():
            return run(image)

    return call


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own warnings: deprecations within PyTorch, optional packages, advice on quantisation."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
