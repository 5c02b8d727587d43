"""A plan's configs: the shipped bundle's own, with the plan's values in place of its values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from accunet_monai.bundle import find_bundle
from accunet_monai.datasets import Listing
from accunet_monai.errors import BundleError
from accunet_monai.planning.choices import Plan, in_plane, network_classes
from accunet_monai.planning.examination import Examination

TEMPLATE = "hippocampus_mri"
"""The bundle whose configs are taken over with their comments, so that what is made better there is better here."""

_SECTIONS = re.compile(r"^network_def:.*?(?=^# -{20,}$)", re.M | re.S)
_HEADER = re.compile(r"\A(#.*\n)+")

_TITLES = {
    "train": "Train",
    "evaluate": "Evaluate the bundle's weights on a part of its split",
    "inference": "Segment every NIfTI file of a folder; label maps land on each image's own grid",
}


def make_configs(name: str, found: Examination, plan: Plan) -> dict[str, str]:
    """File name → text of the configs of a bundle.

    Raises:
        BundleError: ``PLAN_TEMPLATE`` when the shipped bundle's configs lack something that a plan sets.
    """
    folder = find_bundle(TEMPLATE) / "configs"
    made = {"logging.conf": (folder / "logging.conf").read_text(encoding="utf-8")}
    for config, title in _TITLES.items():
        text = (folder / f"{config}.yaml").read_text(encoding="utf-8").replace(TEMPLATE, name)
        header = f"# {title}, for {found.listing.name or name}.\n# By accunet plan; docs/plan.yaml has the reasons.\n"
        text = header + _HEADER.sub("", text)
        beginning, _, rest = _parts(re.sub(r" \(a test holds them so\); see docs/decisions.md -+", " ---", text))
        sections = [dumped({section: content}) for section, content in literal_sections(found, plan).items()]
        text = beginning + "\n".join(sections) + rest
        text = "\n".join(line for line in text.split("\n") if "download" not in line)
        text = text.replace(
            "accunet_monai.training import decathlon_cases", "accunet_monai.datasets import labelled_cases"
        )
        text = text.replace("decathlon_cases(", "labelled_cases(")
        values: dict[str, Any] = {
            "dataset_dir": str(found.listing.path) if config != "inference" or _has_images(found) else "images"
        }
        if config != "inference":
            text = _replaced(text, "labels", "\n" + _indented(dumped(dict(found.listing.labels)), 2))
            values["ignore_label"] = plan["ignore_label"]
        if config == "train":
            values |= _training_values(plan)
            text = _with_own_keys(text, plan, found.listing)
        channels = found.listing.image_channels
        if channels > 1:
            text = re.sub(r"^( +)keys: original$", rf"\g<0>\n\1channels: {channels}", text, flags=re.M)
            text = text.replace(
                "image_cases(@dataset_dir, @limit_cases)", f"image_cases(@dataset_dir, @limit_cases, {channels})"
            )
        for key, value in values.items():
            text = _replaced(text, key, " " + dumped(value).removesuffix("\n...\n").strip())
        made[f"{config}.yaml"] = text
    return made


def _has_images(found: Examination) -> bool:
    """Whether the dataset's folder is one that inference finds images in."""
    return found.listing.layout in ("Decathlon", "nnU-Net raw")


def literal_sections(found: Examination, plan: Plan) -> dict[str, Any]:
    """The sections that decide what the bundle computes, as plain data."""
    axis, context, listing = plan["slicing_axis"], plan["context_slices"], found.listing
    return {
        "network_def": {
            "_target_": "accunet_monai.networks.ACCUNet",
            "spatial_dims": 2,
            "in_channels": listing.image_channels * (2 * context + 1),
            "out_channels": network_classes(listing),
            "base_filters": plan["width"],
        },
        "preprocessing": {"_target_": "monai.transforms.Compose", "transforms": _preprocessing(plan, listing)},
        "inferer": {
            "_target_": "accunet_monai.inferers.SliceInferer",
            "spatial_dim": axis,
            "roi_size": plan["roi_size"],
            "padding_mode": "replicate",
            "context_slices": context,
            "sw_batch_size": plan["batch_size"],
            **({"regions": [region.label for region in listing.regions]} if listing.regions else {}),
        },
        "postprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {
                    "_target_": "monai.transforms.Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": True,
                }
            ],
        },
    }


def _preprocessing(plan: Plan, listing: Listing) -> list[dict[str, Any]]:
    """Reading, orientation, spacing within the slices, intensities."""
    several = {"channels": listing.image_channels} if listing.image_channels > 1 else {}
    transforms: list[dict[str, Any]] = [
        {"_target_": "accunet_monai.transforms.LoadVolumed", "keys": "image", **several},
        {"_target_": "accunet_monai.transforms.LoadLabelMapd", "keys": "label", "allow_missing_keys": True},
        {
            "_target_": "monai.transforms.Orientationd",
            "keys": ["image", "label"],
            "axcodes": "RAS",
            "labels": None,
            "allow_missing_keys": True,
        },
    ]
    if plan["in_plane_spacing"] is not None:
        spacing = [-1.0] * 3
        for place, size in zip(in_plane(plan["slicing_axis"]), plan["in_plane_spacing"], strict=True):
            spacing[place] = float(size)
        transforms.append(
            {
                "_target_": "accunet_monai.transforms.ResampleVolumed",
                "keys": ["image", "label"],
                "spacing": spacing,
                "interpolation": ["linear", "label_linear"],
                "allow_missing_keys": True,
            }
        )
    return transforms + _intensities(plan, listing)


def value_range(plan: Plan) -> list[float]:
    """Smallest and largest value that the network sees."""
    if plan["modality"] != "CT":
        return [-10.0, 10.0]
    mean, deviation = plan["normalisation"]["mean"], plan["normalisation"]["deviation"]
    return [round((edge - mean) / deviation, 4) for edge in plan["window"]]


def dumped(value: Any) -> str:
    """YAML in the order given, lists of plain values on one line."""
    text: str = yaml.dump(
        value, Dumper=_Plain, sort_keys=False, default_flow_style=False, width=110, allow_unicode=True
    )
    return text


class _Plain(yaml.SafeDumper):
    """Without aliases, which a bundle's configs may not have."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        inline = not any(isinstance(item, dict | list) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=inline)


_Plain.add_representer(list, _Plain.represent_list)


def _intensities(plan: Plan, listing: Listing) -> list[dict[str, Any]]:
    low, high = (float(edge) for edge in plan["window"])
    if plan["modality"] == "CT":
        smallest, largest = value_range(plan)
        window = {"a_min": low, "a_max": high, "b_min": smallest, "b_max": largest, "clip": True}
        return [{"_target_": "monai.transforms.ScaleIntensityRanged", "keys": "image", **window}]
    window = {"lower": low, "upper": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    each = {"channel_wise": True} if listing.image_channels > 1 else {}
    return [
        {"_target_": "monai.transforms.ScaleIntensityRangePercentilesd", "keys": "image", **window, **each},
        {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "image", **each},
    ]


def _training_values(plan: Plan) -> dict[str, Any]:
    return {
        "max_epochs": plan["max_epochs"],
        "batch_size": plan["batch_size"],
        "val_interval": max(1, plan["max_epochs"] // 25),
        "loss": plan["loss"],
        ".roi_size": plan["roi_size"],
        ".spatial_dim": plan["slicing_axis"],
        ".context_slices": plan["context_slices"],
        "cache_dir": '$@runs_dir + "/cache"' if plan["cache"] else None,
        ".slices_per_epoch": plan["slices_per_epoch"],
        ".empty": plan["empty"],
    }


def _with_own_keys(text: str, plan: Plan, listing: Listing) -> str:
    """What the shipped training leaves at its default or sets for its own data, and comments on that data."""
    sides = [0] if plan["mirror_left_right"] else []
    text = re.sub(r"^(  (?:dataset|sampler):) +#.*$", r"\1", text, flags=re.M)
    text = re.sub(r"^( +)(empty:.*)$", rf"\1\2\n\1balance: {str(bool(plan['balance'])).lower()}", text, flags=re.M)
    if listing.regions:
        regions = [list(region.values) for region in listing.regions]
        own = rf'\g<0>\n\1regions: {regions}\n\1ignore_label: "@ignore_label"'
        text = re.sub(r'^( +)augmentation: "@train#augmentation"$', own, text, flags=re.M)
    text = re.sub(r"^ +mirror(_slices)?: .*\n", "", text, flags=re.M)
    return re.sub(r'^( +)(cache_dir: "@cache_dir")$', rf"\1mirror: {sides}\n\1\2", text, flags=re.M)


def _replaced(text: str, key: str, value: str) -> str:
    """The text with the value of a key replaced outside of the literal sections; comments stay.

    Args:
        text: of a config.
        key: a top-level key, or ``.key`` for all such keys further inside.
        value: what follows the colon.
    """
    head = rf" +{key[1:]}:" if key.startswith(".") else f"{key}:"
    line = re.compile(rf"^(?P<head>{head}) (?P<value>[^\n]*?)(?P<comment> +# [^\n]*)?$", re.M)
    beginning, sections, rest = _parts(text)
    replacement = lambda m: f"{m['head']}{value}{m['comment'] or ''}"  # noqa: E731
    changed = [line.subn(replacement, part) for part in (beginning, rest)]
    if not sum(count for _, count in changed):
        raise BundleError("PLAN_TEMPLATE", f"the bundle {TEMPLATE} has no key {key!r} for a plan to set.")
    return changed[0][0] + sections + changed[1][0]


def _parts(text: str) -> tuple[str, str, str]:
    found = _SECTIONS.search(text)
    if found is None:
        raise BundleError("PLAN_TEMPLATE", f"the literal sections of the bundle {TEMPLATE} are not marked as such.")
    return text[: found.start()], found.group(), text[found.end() :]


def _indented(text: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in text.strip().split("\n"))


def named_labels(labels: Mapping[int, str]) -> dict[int, str]:
    """Every value from 1 to the largest, those that are not declared by their number."""
    return {value: labels.get(value, f"label {value} (not used)") for value in range(1, max(labels) + 1)}


def bundle_name(folder: Path) -> str:
    """The bundle's name from its folder's, of letters, digits, _ and - (it names files and experiments)."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", folder.name) or "bundle"
