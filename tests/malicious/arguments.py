"""Allowed targets with arguments that exhaust memory or time, or reach for a file, a name or a callable."""

from __future__ import annotations

from typing import Any

from tests.malicious.case import FIRST, INFERER, LAST, POST, WIDTH, Case, at, in_config

CODE = "BUNDLE_ARGUMENT"
MONAI = "monai.transforms."
OURS = "accunet_monai.transforms."


def sliding(**arguments: Any) -> dict[str, Any]:
    return {"_target_": "monai.inferers.SlidingWindowInferer", "roi_size": [64, 64, 64], **arguments}


def transform(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": "image", **arguments}


CASES: dict[str, Case] = {
    # Sizes: refused before anything is allocated
    "width of a billion": in_config(WIDTH, 10**9, CODE),
    "width beyond any integer": in_config(WIDTH, 10**300, CODE),
    "width below zero": in_config(WIDTH, -8, CODE),
    "width is true": in_config(WIDTH, True, CODE),
    "width is text": in_config(WIDTH, "8", CODE),
    "endless MLFC passes": in_config(at("network_def", "mlfc_iterations"), 10**9, CODE),
    "a billion channels": in_config(at("network_def", "in_channels"), 10**9, CODE),
    "features of a U-Net": in_config(
        at("network_def"), {"_target_": "monai.networks.nets.BasicUNet", "features": [10**6] * 6}, CODE
    ),
    "parameters of an activation": in_config(at("network_def", "act"), ["prelu", {"num_parameters": 10**12}], CODE),
    "shape of a norm": in_config(at("network_def", "norm"), ["layer", {"normalized_shape": [10**6, 10**6]}], CODE),
    "window of a terabyte": in_config(INFERER, sliding(roi_size=[8192, 8192, 8192]), CODE),
    "window by one number": in_config(INFERER, sliding(roi_size=8000), CODE),
    "windows without end": in_config(INFERER, sliding(overlap=0.9999), CODE),
    "a million windows a batch": in_config(INFERER, sliding(sw_batch_size=10**6), CODE),
    "a million context slices": in_config(at("inferer", "context_slices"), 10**6, CODE),
    "spatial_dim of seven": in_config(at("inferer", "spatial_dim"), 7, CODE),
    "resized to a terabyte": in_config(LAST, transform(f"{MONAI}Resized", spatial_size=[10**4] * 3), CODE),
    "a micrometre a voxel": in_config(LAST, transform(f"{MONAI}Spacingd", pixdim=[1e-6] * 3), CODE),
    "a micrometre a voxel, ours": in_config(LAST, transform(f"{OURS}ResampleVolumed", spacing=1e-6), CODE),
    "a million classes": in_config(POST, transform(f"{MONAI}AsDiscreted", to_onehot=10**6), CODE),
    "elements of a gigabyte": in_config(LAST, transform(f"{MONAI}NormalizeIntensityd", dtype="S1000000000"), CODE),
    "any Python object": in_config(LAST, transform(f"{MONAI}NormalizeIntensityd", dtype="object"), CODE),
    # Numbers that are none
    "not a number": in_config(at("preprocessing", "transforms", 3, "lower"), float("nan"), CODE),
    "infinity": in_config(at("preprocessing", "transforms", 3, "b_max"), float("inf"), CODE),
    "subtrahend of text": in_config(LAST, transform(f"{MONAI}NormalizeIntensityd", subtrahend="os.environ"), CODE),
    # Names, files and callables
    "a path as a key": in_config(FIRST, {"_target_": f"{OURS}LoadVolumed", "keys": "/etc/passwd"}, CODE),
    "a reader": in_config(FIRST, transform(f"{OURS}LoadVolumed", reader="os.system"), CODE),
    "a callable by name": in_config(POST, transform(f"{MONAI}Activationsd", other="os.system"), CODE),
    "a callable afterwards": in_config(
        POST, transform(f"{MONAI}Invertd", transform="@preprocessing", post_func="os.system"), CODE
    ),
    "overrides of a pipeline": in_config(at("preprocessing", "overrides"), {"NormalizeIntensityd": {"x": 1}}, CODE),
    "a logger's name": in_config(at("preprocessing", "log_stats"), "root", CODE),
    "a folder to write to": in_config(at("inferer", "scratch_dir"), "/tmp", CODE),
    "another machine": in_config(at("inferer", "device"), "cuda:99", CODE),
    "a meta device": in_config(at("inferer", "sw_device"), "meta", CODE),
    "another layer": in_config(at("network_def", "norm"), ["torch.load", {"f": "x.pt"}], CODE),
    "preprocessing as a size": in_config(at("inferer", "roi_size"), "@preprocessing", CODE),
    "transforms that are names": in_config(at("preprocessing", "transforms"), ["Identityd"], CODE),
    "arguments without a component": in_config(at("preprocessing", "transforms"), [{"keys": "image"}], CODE),
    "unknown argument": in_config(at("inferer", "no_such"), 1, CODE),
}
