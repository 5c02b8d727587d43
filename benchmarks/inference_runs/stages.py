"""One volume through a bundle's predictor, timed stage by stage: from a compressed file to a label map on its grid."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml

from accunet_monai.bundle import Precision, Predictor, load_bundle
from accunet_monai.networks import ACCUNet
from accunet_monai.networks.checkpoint import save_network
from accunet_monai.volumes import Volume, write_label_map

STAGES = ("reading and preprocessing", "network", "inversion and cleaning", "writing")
COARSER = 16 / 15
"""Voxel edges of the file against those that the network sees, so that images are resampled and labels brought back."""


def make_bundle(folder: Path, width: int, batch: int, network: ACCUNet) -> Path:
    """A bundle of one label, resampled to 1 mm in the slice, cleaned at the end."""
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "base_filters": width}
    sections: dict[str, Any] = {
        "network_def": {"_target_": "accunet_monai.networks.ACCUNet", **arguments},
        "preprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {"_target_": "accunet_monai.transforms.LoadVolumed", "keys": "image"},
                {"_target_": "accunet_monai.transforms.OrientVolumed", "keys": "image"},
                {"_target_": "accunet_monai.transforms.ResampleVolumed", "keys": "image", "spacing": [1.0, 1.0, 0]},
                {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "image"},
            ],
        },
        "inferer": {"_target_": "accunet_monai.inferers.SliceInferer", "spatial_dim": 2, "sw_batch_size": batch},
        "postprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {
                    "_target_": "monai.transforms.Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": True,
                },
                {"_target_": "accunet_monai.transforms.CleanLabelsd", "keys": "pred", "largest_component": [1]},
            ],
        },
    }
    data_format = {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": {"channel_def": {"0": "lesion"}}}}
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    metadata = {"version": "0.0.1", "network_data_format": data_format}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    save_network(network, folder / "models" / "model.safetensors")
    return folder


def write_image(path: Path, shape: tuple[int, int, int]) -> Path:
    """A file of int16 noise that the bundle sees with this shape (X, Y, Z)."""
    size = (round(shape[0] / COARSER), round(shape[1] / COARSER), shape[2])
    values = np.random.default_rng(0).normal(0, 300, size).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([-COARSER, COARSER, 2.5, 1.0])), path)
    return path


def segment_file(predictor: Predictor, image: Path) -> None:
    """All stages, untimed."""
    prediction = predictor.predict(image)
    assert isinstance(prediction.image, Volume)
    write_label_map(image.parent / "seg.nii.gz", prediction.label_map, prediction.image)


def timed_stages(bundle: Path, image: Path, precision: Precision) -> tuple[dict[str, float], tuple[int, ...]]:
    """Seconds of each of ``STAGES`` of the second run, and the shape that the network saw."""
    predictor = load_bundle(bundle, precision=precision)
    for _ in range(2):  # the first folds the network and finds its kernels
        moments = [time.perf_counter()]
        work = predictor.prepare(image)
        seen = tuple(work.data["image"].shape[1:])
        moments.append(time.perf_counter())
        work = predictor.infer(work)
        moments.append(time.perf_counter())
        prediction = predictor.finish(work)
        moments.append(time.perf_counter())
        assert isinstance(prediction.image, Volume)
        write_label_map(image.parent / f"{precision}_seg.nii.gz", prediction.label_map, prediction.image)
        moments.append(time.perf_counter())
    return dict(zip(STAGES, np.diff(moments).tolist(), strict=True)), seen
