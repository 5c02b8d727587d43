"""Literal sections that want something evaluated, imported or built that is not on the list."""

from __future__ import annotations

from tests.malicious.case import AXCODES, FIRST, INFERER, POST, WIDTH, Case, at, in_config

ROI = at("inferer", "roi_size")
TOUCH = "__import__('pathlib').Path('CANARY').touch()"

CASES: dict[str, Case] = {
    "expression": in_config(WIDTH, f"${TOUCH} or 8", "BUNDLE_EXPRESSION"),
    "expression in a list": in_config(AXCODES, ["R", f"${TOUCH}"], "BUNDLE_EXPRESSION"),
    "import": in_config(WIDTH, "$import os", "BUNDLE_EXPRESSION"),
    "macro": in_config(WIDTH, "%/etc/passwd::0", "BUNDLE_EXPRESSION"),
    "macro of this file": in_config(WIDTH, "%evil", "BUNDLE_EXPRESSION"),
    "os.system": in_config(INFERER, {"_target_": "os.system", "command": "touch CANARY"}, "BUNDLE_TARGET"),
    "eval": in_config(FIRST, {"_target_": "builtins.eval", "_source": "open('CANARY','w')"}, "BUNDLE_TARGET"),
    "lambda": in_config(FIRST, {"_target_": "monai.transforms.Lambdad", "keys": "image", "func": "x"}, "BUNDLE_TARGET"),
    "short name": in_config(FIRST, {"_target_": "Lambdad", "keys": "image", "func": "x"}, "BUNDLE_TARGET"),
    "MONAI's loader": in_config(
        FIRST,
        {"_target_": "monai.transforms.LoadImaged", "keys": "image", "reader": "os.system"},
        "BUNDLE_TARGET",
    ),
    "deep target": in_config(
        WIDTH, {"a": [{"b": {"_target_": "os.system", "command": "touch CANARY"}}]}, "BUNDLE_TARGET"
    ),
    "torch.load": in_config(POST, {"_target_": "torch.load", "f": "x.pt", "weights_only": False}, "BUNDLE_TARGET"),
    "target by reference": in_config(INFERER, {"_target_": "@network_def"}, "BUNDLE_TARGET"),
    "target is a list": in_config(INFERER, {"_target_": ["os.system"]}, "BUNDLE_TARGET"),
    "target is nothing": in_config(INFERER, {"_target_": None}, "BUNDLE_TARGET"),
    "_mode_": in_config(at("inferer", "_mode_"), "debug", "BUNDLE_EXPRESSION"),
    "_mode_ callable": in_config(at("preprocessing", "transforms", 0, "_mode_"), "callable", "BUNDLE_EXPRESSION"),
    "_requires_": in_config(at("inferer", "_requires_"), f"${TOUCH}", "BUNDLE_EXPRESSION"),
    "_disabled_": in_config(at("postprocessing", "_disabled_"), True, "BUNDLE_EXPRESSION"),
    "_debug_": in_config(at("inferer", "_debug_"), True, "BUNDLE_EXPRESSION"),
    "key with separator": in_config(at("inferer", "a::_target_"), "os.system", "BUNDLE_EXPRESSION"),
    "key with old separator": in_config(at("inferer", "a#_target_"), "os.system", "BUNDLE_EXPRESSION"),
    "reference outside": in_config(ROI, "@evil", "BUNDLE_EXPRESSION"),
    "nested reference outside": in_config(ROI, "@evil::inner", "BUNDLE_EXPRESSION"),
    "relative reference": in_config(ROI, "@::::evil", "BUNDLE_EXPRESSION"),
    "reference to itself": in_config(ROI, "@inferer", "BUNDLE_EXPRESSION"),
    "inverse of itself": in_config(
        FIRST,
        {"_target_": "monai.transforms.Invertd", "keys": "image", "transform": "@preprocessing"},
        "BUNDLE_INVALID",
        builds=True,
    ),
    "references that double": in_config(
        at("preprocessing", "transforms"),
        [{"_target_": "monai.transforms.Compose", "transforms": ["@preprocessing::transforms::1"] * 2}] * 2,
        "BUNDLE_EXPRESSION",
    ),
    "no network": in_config(
        at("network_def"), {"_target_": "monai.inferers.SimpleInferer"}, "BUNDLE_INVALID", builds=True
    ),
    "no inferer": in_config(
        INFERER, {"_target_": "monai.transforms.Identityd", "keys": "image"}, "BUNDLE_INVALID", builds=True
    ),
    "inferer is text": in_config(INFERER, "SliceInferer", "BUNDLE_INVALID"),
    "preprocessing is a list": in_config(at("preprocessing"), [], "BUNDLE_INVALID"),
    "postprocessing is a reference": in_config(at("postprocessing"), "@evil", "BUNDLE_INVALID"),
}
