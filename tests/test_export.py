"""Exported programs: the same function in another file, at all sizes, and what a lower precision costs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import Result
from monai.networks.nets import BasicUNet
from typer.testing import CliRunner

from accunet_monai.bundle import find_bundle, load_bundle, read_literal_sections
from accunet_monai.cli import app
from accunet_monai.errors import BundleError, NetworkError
from accunet_monai.export import DESCRIPTION, export_bundle, open_program, run
from accunet_monai.export.programs import Program, compared
from accunet_monai.networks import ACCUNet
from accunet_monai.networks.checkpoint import save_network, save_weights
from accunet_monai.summary import export_checkpoint
from accunet_monai.volumes import read_label_map
from tests import made_bundle
from tests.conftest import Require
from tests.networks.randomised import randomise

CLOSE = 1e-4
"""Largest difference of float32 outputs as a share of their spread: sums in another order."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader"),  # an optional reader that MONAI registers anyway
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),  # MONAI: configs are trusted; these are ours
]

CHANNELS = 2
SIZES = ((3, 40, 25, 18), (1, 17, 64, 21))
TINY = ((1, 1, 1, 1), (2, 16, 3, 5))


def a_bundle(folder: Path, spatial_dims: int = 2, **arguments: Any) -> Path:
    """A bundle whose network is small and depends on its input, in the layout of the shipped ones."""
    bundle = made_bundle.picture_bundle(folder, CHANNELS)
    target = arguments.pop("_target_", "accunet_monai.networks.ACCUNet")
    arguments = {"spatial_dims": spatial_dims, "in_channels": CHANNELS, "out_channels": 3, **arguments}
    config = made_bundle.read_config(bundle, "inference")
    config["network_def"] = {"_target_": target, **arguments}
    made_bundle.write_config(bundle, "inference", config)
    if target.endswith("ACCUNet"):
        weights(bundle, arguments)
    return bundle


def weights(bundle: Path, arguments: dict[str, Any]) -> Path:
    """Random weights whose logits vary over an image, and do not amplify rounding as other draws do."""
    network = randomise(ACCUNet(**arguments), seed=2).eval()
    size = arguments.get("input_shape") or (48, 32, 32)[: arguments["spatial_dims"]]
    with torch.no_grad():
        logits = network(image(2, *size, channels=arguments["in_channels"])).transpose(0, 1).flatten(1)
        network.head.weight /= logits.std(1).reshape(network.head.weight.shape[0], *[1] * (len(size) + 1))
        network.head.bias.copy_((network.head.bias - logits.mean(1)) / logits.std(1))
    return save_network(network, bundle / "models" / "model.safetensors")


def image(batch: int, *size: int, channels: int = CHANNELS) -> torch.Tensor:
    coarse = torch.randn(batch, channels, *[6] * len(size), generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size, mode="bicubic" if len(size) == 2 else "trilinear")  # smooth, as images are


def outputs(path: Path, file_format: str, x: torch.Tensor) -> torch.Tensor:
    """What the file gives, opened as its users would."""
    with torch.no_grad():
        if file_format == "torchscript":
            return torch.jit.load(path)(x)
        if file_format == "pt2":
            return torch.export.load(path).module()(x)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def description(path: Path, file_format: str) -> dict[str, Any]:
    extra = {DESCRIPTION: ""}
    if file_format == "torchscript":
        torch.jit.load(path, _extra_files=extra)
    elif file_format == "pt2":
        torch.export.load(path, extra_files=extra)
    else:
        extra = {item.key: item.value for item in pytest.importorskip("onnx").load(path).metadata_props}
    found: dict[str, Any] = json.loads(extra[DESCRIPTION])
    return found


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    spread = float(expected.max() - expected.min())
    assert spread > 0
    assert float((found - expected).abs().max()) <= CLOSE * spread


def accunet(*arguments: object, status: int = 0) -> Result:
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("file_format", "name"), [("torchscript", "m.ts"), ("pt2", "m.pt2"), ("onnx", "m.onnx")])
def test_a_program_is_the_network_at_other_sizes(
    spatial_dims: int, file_format: str, name: str, tmp_path: Path
) -> None:
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    bundle = a_bundle(tmp_path, spatial_dims, base_filters=2, mlfc_iterations=3 - spatial_dims)  # 3D takes longest
    target = tmp_path / name
    result = accunet("export", bundle, target, "--format", file_format)
    assert f"written: {target} ({file_format}, float32" in result.stdout

    network = load_bundle(bundle).network
    told = description(target, file_format)
    smallest = 17 if file_format == "pt2" else 1
    for batch, *size in SIZES if smallest > 1 else (*SIZES, *TINY):
        x = image(batch, *size[:spatial_dims])
        with torch.no_grad():
            assert_same(outputs(target, file_format, x), network(x))
    if smallest > 1:
        with pytest.raises((AssertionError, RuntimeError), match=r"size\(\)\[2\] >= 17|>= 17"):
            outputs(target, file_format, image(1, *[16] * spatial_dims))

    assert told["smallest_size"] == smallest
    assert told["weights_sha256"] == hashlib.sha256((bundle / "models" / "model.safetensors").read_bytes()).hexdigest()
    assert (told["bundle"], told["version"], told["output"]) == (bundle.name, "0.0.1", "logits")
    assert told["labels"] == {"1": "cell", "2": "rim"}
    assert told["input"]["num_channels"] == CHANNELS
    assert told["preprocessing"] == read_literal_sections(bundle)["preprocessing"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_are_the_sigmoid_or_the_softmax(classes: int, tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, base_filters=2, mlfc_iterations=0, out_channels=classes)
    accunet("export", bundle, tmp_path / "m.ts", "--probabilities")
    x = image(2, 20, 37)
    with torch.no_grad():
        logits = load_bundle(bundle).network(x)
    expected = 1 / (1 + (-logits).exp()) if classes == 1 else logits.exp() / logits.exp().sum(1, keepdim=True)
    assert_same(outputs(tmp_path / "m.ts", "torchscript", x), expected)
    assert description(tmp_path / "m.ts", "torchscript")["output"] == "probabilities"


def test_other_weights_are_exported_and_named_by_their_hash(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, base_filters=2, mlfc_iterations=0)
    other = ACCUNet(2, CHANNELS, 3, base_filters=2, mlfc_iterations=0).eval()
    file = save_network(other, tmp_path / "other.safetensors")
    export_bundle(bundle, tmp_path / "m.ts", weights=file)
    with torch.no_grad():
        assert_same(outputs(tmp_path / "m.ts", "torchscript", image(1, 33, 18)), other(image(1, 33, 18)))
    told = description(tmp_path / "m.ts", "torchscript")
    assert told["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_network_made_for_one_size_keeps_it(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, base_filters=2, mlfc_iterations=0, input_shape=[20, 33])
    for file_format in ("torchscript", "pt2"):
        export_bundle(bundle, tmp_path / "m", file_format)
        x = image(3, 20, 33)
        with torch.no_grad():
            assert_same(outputs(tmp_path / "m", file_format, x), load_bundle(bundle).network(x))


def test_norms_that_cannot_be_folded_are_exported_as_they_are(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, base_filters=2, mlfc_iterations=0, norm=["group", {"num_groups": 1}])
    export_bundle(bundle, tmp_path / "m.ts")
    with torch.no_grad():
        x = image(1, 20, 33)
        assert_same(outputs(tmp_path / "m.ts", "torchscript", x), load_bundle(bundle).network(x))
    with pytest.raises(BundleError, match=r"\[EXPORT_PRECISION\] .*batch norms"):
        export_bundle(bundle, tmp_path / "m.ts", precision="bfloat16")


def test_a_network_without_a_form_in_the_format_is_refused(tmp_path: Path) -> None:
    features = [2, 2, 2, 2, 2, 2]
    bundle = a_bundle(tmp_path, _target_="monai.networks.nets.BasicUNet", features=features)
    network = BasicUNet(2, CHANNELS, 3, features).eval()
    save_weights(network.state_dict(), bundle / "models" / "model.safetensors", {})
    export_bundle(bundle, tmp_path / "m.ts")
    with torch.no_grad():
        assert_same(outputs(tmp_path / "m.ts", "torchscript", image(1, 32, 48)), network(image(1, 32, 48)))
    with pytest.raises(BundleError, match=r"\[EXPORT_FAILED\] the network has no form as pt2: "):
        export_bundle(bundle, tmp_path / "m.pt2", "pt2")  # it branches on sizes
    assert not (tmp_path / "m.pt2").exists()


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = a_bundle(tmp_path, base_filters=2, mlfc_iterations=0)
    target = tmp_path / "m.ts"
    target.write_bytes(b"an older file")

    def shifted(network: ACCUNet, precision: str) -> torch.nn.Module:
        wrong = ACCUNet(**network.config).eval()
        wrong.load_state_dict(network.state_dict())
        wrong.head.bias.data += 1.0
        return wrong

    monkeypatch.setattr(run, "_prepared", shifted)
    with pytest.raises(
        NetworkError, match=r"\[EXPORT_DIFFERS\] .*m\.ts: for an image .* of the spread apart"
    ) as raised:
        export_bundle(bundle, target)
    with torch.no_grad():
        logits = load_bundle(bundle).network(image(1, 32, 48))
    apart = float(re.findall(r"([\d.e+-]+) of the spread", str(raised.value))[0])
    assert apart == pytest.approx(1.0 / float(logits.max() - logits.min()), rel=0.5)  # on other images
    assert target.read_bytes() == b"an older file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.ts", bundle.name]


def test_no_number_and_another_shape_are_differences(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, base_filters=2, mlfc_iterations=0)
    told = {"precision": "bfloat16", "spatial_dims": 2, "smallest_size": 17, "input": {"num_channels": CHANNELS}}
    program = Program(load_bundle(bundle).network, probabilities=False)
    with torch.no_grad():
        assert compared(program, program, told, tmp_path) == 0
        for wrong in (lambda x: program(x) * float("nan"), lambda x: program(x)[:, :1], lambda x: program(x) + 100):
            with pytest.raises(NetworkError, match="EXPORT_DIFFERS"):
                compared(wrong, program, told, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (("--format", "tflite"), "EXPORT_FORMAT", "torchscript, pt2, onnx"),
        (("--format", "onnx", "--precision", "bfloat16"), "EXPORT_PRECISION", "float32, int8"),
        (("--format", "pt2", "--precision", "int8"), "EXPORT_PRECISION", "float32, bfloat16"),
        (("--format", "onnx", "--precision", "int8"), "EXPORT_CALIBRATION", "--dataset_dir"),
        (("--dataset_dir", "nowhere"), "DATASET_MISSING", "nowhere"),
        (("--weights", "nowhere"), "WEIGHTS_MISSING", "nowhere"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(
    arguments: tuple[str, ...], code: str, hint: str, tmp_path: Path
) -> None:
    result = accunet("export", "hippocampus_mri", tmp_path / "model", *arguments, status=1)
    assert result.stderr.startswith(f"error: [{code}] ")
    assert hint in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------------
# What a precision costs


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    """The hippocampus bundle with a small network that finds every label somewhere."""
    bundle = made_bundle.one_view(made_bundle.copied_bundle(find_bundle("hippocampus_mri"), tmp_path))
    for name in ("inference", "evaluate"):
        config = made_bundle.read_config(bundle, name)
        config["network_def"] |= {"base_filters": 2, "mlfc_iterations": 0}
        made_bundle.write_config(bundle, name, config)
    weights(bundle, {name: value for name, value in config["network_def"].items() if name != "_target_"})
    return bundle


@pytest.fixture
def dataset(small_bundle: Path, tmp_path: Path) -> Path:
    parts = json.loads((small_bundle / "configs" / "split.json").read_text(encoding="utf-8"))["parts"]
    parts["validation"] = parts["validation"][:2]
    split = {"parts": parts, "subjects": {}}
    (small_bundle / "configs" / "split.json").write_text(json.dumps(split), encoding="utf-8")
    listed = [name for names in parts.values() for name in names]
    return made_bundle.decathlon_folder(
        tmp_path / "data", listed, stored=[*parts["training"][:2], *parts["validation"]]
    )


def dice_by_hand(bundle: Path, dataset: Path, network: Any = None) -> list[float]:
    predictor = load_bundle(bundle)
    predictor.network = network or predictor.network
    cases = json.loads((bundle / "configs" / "split.json").read_text(encoding="utf-8"))["parts"]["validation"]
    scores: list[list[float]] = []
    for case in cases:
        found = predictor.predict(dataset / "imagesTr" / f"{case}.nii.gz").label_map
        reference = read_label_map(dataset / "labelsTr" / f"{case}.nii.gz").array
        both = [(found == label, reference == label) for label in predictor.labels]
        scores.append([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in both])
    means: list[float] = np.mean(scores, 0).tolist()
    return means


@pytest.mark.parametrize("output", ["--logits", "--probabilities"])
def test_the_cost_is_the_dice_of_the_bundles_validation_cases(
    output: str, small_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    target = tmp_path / "m.ts"
    arguments = ("export", small_bundle, target, "--precision", "bfloat16", "--dataset_dir", dataset, output)
    printed = accunet(*arguments).stdout
    rows = re.findall(r"Dice, (\w+) hippocampus +│ +([\d.]+) +│ +([\d.]+) +│ +([+-][\d.]+)", printed)
    assert [name for name, *_ in rows] == ["anterior", "posterior"]
    before = dice_by_hand(small_bundle, dataset)
    assert [float(row[1]) for row in rows] == pytest.approx(before, abs=6e-5)
    if output == "--logits":
        after = dice_by_hand(small_bundle, dataset, torch.jit.load(target))
        assert [float(row[2]) for row in rows] == pytest.approx(after, abs=6e-5)
    for _, first, second, difference in rows:
        assert float(second) - float(first) == pytest.approx(float(difference), abs=1.1e-4)
        assert abs(float(difference)) < 0.05
    sizes = [path.stat().st_size / 1e6 for path in (small_bundle / "models" / "model.safetensors", target)]
    assert re.search(rf"file +│ +{sizes[0]:.2f} MB +│ +{sizes[1]:.2f} MB", printed)


def test_a_lower_precision_without_a_dataset_says_that_its_cost_is_unknown(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, base_filters=4, mlfc_iterations=0)
    printed = accunet("export", bundle, tmp_path / "half.ts", "--precision", "bfloat16").stdout
    assert "what bfloat16 costs in Dice was not measured" in printed
    x = image(2, 40, 25)
    with torch.no_grad():
        expected = load_bundle(bundle).network(x)
    apart = (outputs(tmp_path / "half.ts", "torchscript", x) - expected).abs().max() / (expected.max() - expected.min())
    assert 1e-4 < apart < 0.5
    assert "Dice" not in accunet("export", bundle, tmp_path / "full.ts").stdout


def test_int8_quantises_every_convolution_and_prints_its_cost(
    small_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    target = tmp_path / "int8.onnx"
    arguments = ("export", small_bundle, target, "--format", "onnx", "--precision", "int8", "--dataset_dir", dataset)
    printed = accunet(*arguments).stdout
    assert re.search(r"Dice, anterior hippocampus +│ +[\d.]+ +│ +[\d.]+ +│ +[+-][\d.]+", printed)
    model = onnx.load(target)
    made_by = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear", "DequantizeLinear"]
    run_it, told = open_program(target, "onnx")
    assert (told["precision"], told["format"]) == ("int8", "onnx")
    after = dice_by_hand(small_bundle, dataset, run_it)
    rows = re.findall(r"Dice, \w+ hippocampus +│ +[\d.]+ +│ +([\d.]+)", printed)
    assert [float(value) for value in rows] == pytest.approx(after, abs=6e-5)


# ----------------------------------------------------------------------------------------------------------------------
# TensorRT, by MONAI's own command


def test_trt_export_gives_the_same_logits(tmp_path: Path, require: Require) -> None:
    present = importlib.util.find_spec("torch_tensorrt") is not None and torch.cuda.is_available()
    require("tensorrt", present, "no torch_tensorrt, or no GPU")
    import torch_tensorrt
    from monai.bundle import trt_export

    bundle = find_bundle("hippocampus_mri")
    checkpoint = export_checkpoint(bundle, tmp_path / "model.pt")
    configs = bundle / "configs"
    trt_export(
        "network_def",
        str(tmp_path / "model_trt.ts"),
        str(checkpoint),
        str(configs / "metadata.json"),
        str(configs / "inference.yaml"),
        precision="fp32",
        input_shape=[1, 5, 64, 48],
        dynamic_batchsize=[1, 4, 16],
        device=0,
    )
    assert torch_tensorrt.__version__
    program = torch.jit.load(tmp_path / "model_trt.ts").cuda()
    network = load_bundle(bundle, device="cuda").network
    x = image(3, 64, 48, channels=5).cuda()
    with torch.no_grad():
        expected, found = network(x), program(x)
    assert float((found - expected).abs().max()) <= 0.01 * float(expected.max() - expected.min())  # TF32 multiplies
