"""Bundles and datasets made by the tests: small enough to run in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml

from accunet_monai.networks import ACCUNet
from accunet_monai.networks.checkpoint import save_network

TINY = (10, 20, 18)
"""Voxels of a made case: enough sagittal slices for two cases to fill a batch."""


def copied_bundle(source: Path, folder: Path) -> Path:
    """A bundle's folder copied under another name."""
    target = folder / "copied_bundle"
    for part in ("configs", "models"):
        shutil.copytree(source / part, target / part)
    return target


def read_config(bundle: Path, name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((bundle / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def write_config(bundle: Path, name: str, config: dict[str, Any]) -> Path:
    path = bundle / "configs" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def read_metadata(bundle: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return metadata


def write_metadata(bundle: Path, metadata: Any) -> Path:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps(metadata), encoding="utf-8")
    return path


def without_contract(bundle: Path) -> Path:
    """Lets a copied bundle take any image."""
    metadata = read_metadata(bundle)
    metadata.pop("input_contract", None)
    write_metadata(bundle, metadata)
    return bundle


def without_cleaning(bundle: Path) -> Path:
    """Leaves label maps as a copied bundle's network gives them: those of random weights are in many pieces."""
    config = read_config(bundle, "inference")
    steps = config["postprocessing"]["transforms"]
    config["postprocessing"]["transforms"] = [step for step in steps if not step["_target_"].endswith("CleanLabelsd")]
    write_config(bundle, "inference", config)
    return bundle


def one_view(bundle: Path, roi_size: tuple[int, int] = (64, 48)) -> Path:
    """Lets a copied hippocampus bundle see sagittal slices alone, with one neighbour on either side, in one window."""
    for name in ("train", "evaluate", "inference"):
        config = read_config(bundle, name)
        config["network_def"]["in_channels"] = 3
        for key in ("views", "mode"):
            del config["inferer"][key]
        sections = [config["inferer"], *([config["train"]["dataset"]] if name == "train" else [])]
        for section in sections:
            section |= {"spatial_dim": 0, "roi_size": list(roi_size), "context_slices": 1}  # no YAML aliases
        write_config(bundle, name, config)
    metadata = bundle / "configs" / "metadata.json"
    told = json.loads(metadata.read_text(encoding="utf-8"))
    told["network_data_format"]["inputs"]["image"] |= {
        "num_channels": 3,
        "channel_def": {"0": "slice before", "1": "slice", "2": "slice after"},
    }
    metadata.write_text(json.dumps(told), encoding="utf-8")
    return bundle


def picture_bundle(folder: Path, channels: int = 3) -> Path:
    """A bundle for colour (3 channels) or grey pictures with random weights and two labels, cell and rim."""
    bundle = folder / f"pictures_{channels}"
    (bundle / "configs").mkdir(parents=True)
    arguments = {"spatial_dims": 2, "in_channels": channels, "out_channels": 3, "base_filters": 8, "mlfc_iterations": 1}
    sections: dict[str, Any] = {
        "network_def": {"_target_": "accunet_monai.networks.ACCUNet", **arguments},
        "preprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {"_target_": "accunet_monai.transforms.LoadPictured", "keys": "image", "channels": channels},
                {
                    "_target_": "monai.transforms.ScaleIntensityRanged",
                    "keys": "image", "a_min": 0.0, "a_max": 255.0, "b_min": -1.0, "b_max": 1.0,
                },
            ],
        },
        "inferer": {"_target_": "monai.inferers.SimpleInferer"},
        "postprocessing": {"_target_": "monai.transforms.AsDiscreted", "keys": "pred", "argmax": True},
    }  # fmt: skip
    write_config(bundle, "inference", sections)
    image = {"type": "image", "format": "rgb", "num_channels": channels, "spatial_shape": ["*", "*"]}
    prediction = {"channel_def": {"0": "background", "1": "cell", "2": "rim"}}
    data_format = {"inputs": {"image": image}, "outputs": {"pred": prediction}}
    write_metadata(bundle, {"version": "0.0.1", "intended_input": "picture", "network_data_format": data_format})
    random_weights(bundle, 2 * torch.rand(1, channels, 64, 64, generator=torch.Generator().manual_seed(0)) - 1)
    return bundle


def random_weights(bundle: Path, image: torch.Tensor) -> Path:
    """Gives a bundle random weights of width 8, with which every label occurs in ``image`` (1, C, H, W)."""
    config = read_config(bundle, "inference")
    arguments = config["network_def"]
    arguments["base_filters"] = 8
    write_config(bundle, "inference", config)
    torch.manual_seed(0)
    network = ACCUNet(**{name: value for name, value in arguments.items() if name != "_target_"}).eval()
    with torch.no_grad():
        network.head.bias.sub_(network(image).mean((0, 2, 3)))
    return save_network(network, bundle / "models" / "model.safetensors")


def made_volume(seed: int, shape: tuple[int, int, int] = TINY, labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(image int16, label map uint8): brighter blocks along the second axis are the labels 1, 2, …"""
    rng = np.random.default_rng(seed)
    label_map = np.zeros(shape, dtype=np.uint8)
    inner = tuple(slice(size // 4, size - size // 4) for size in shape)
    edges = np.linspace(inner[1].start, inner[1].stop, labels + 1).astype(int)
    for label in range(labels):
        label_map[inner[0], edges[label] : edges[label + 1], inner[2]] = label + 1
    image = rng.normal(100, 10, shape) + 60 * label_map
    return image.astype(np.int16), label_map


def save_volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, 1, 1, 1]) if affine is None else affine), path)
    return path


def decathlon_folder(folder: Path, listed: list[str], stored: list[str], labels: int = 2) -> Path:
    """A dataset in the Decathlon's layout that lists many cases, of which a few exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(stored):
        image, label_map = made_volume(seed, labels=labels)
        save_volume(folder / "imagesTr" / f"{name}.nii.gz", image)
        save_volume(folder / "labelsTr" / f"{name}.nii.gz", label_map)
    entries = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in listed]
    (folder / "dataset.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    return folder
