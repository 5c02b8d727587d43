"""What describes a planned bundle: metadata with the input contract, segments, the plan itself, the page about it."""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Sequence
from typing import Any

from pydicom.sr.codedict import codes

from accunet_monai import __version__
from accunet_monai.bundle import find_bundle, read_metadata
from accunet_monai.planning.choices import Choice, Plan, shown
from accunet_monai.planning.configs import TEMPLATE, dumped, named_labels, value_range
from accunet_monai.planning.examination import Examination
from accunet_monai.planning.facts import CaseFacts

MARGIN = 0.2
"""The contract's ranges are those of the cases, wider by this share."""

FIRST_VERSION = "0.1.0"

_STRUCTURE = {"code": "91723000", "scheme": "SCT", "meaning": "Anatomical Structure"}


def make_metadata(name: str, found: Examination, plan: Plan) -> str:
    """``configs/metadata.json``: MONAI's schema and our input contract."""
    labels = named_labels(found.listing.labels)
    told = "0 background, " + ", ".join(f"{value} {label}" for value, label in labels.items())
    context = plan["context_slices"]
    slices = [*("slice before",) * context, "slice", *("slice after",) * context]
    kinds = found.listing.channels if found.listing.image_channels > 1 else ()
    channels = [f"{kind}, {place}" for place in slices for kind in kinds] or slices
    template = read_metadata(find_bundle(TEMPLATE))
    kept = ("schema", "monai_version", "pytorch_version", "numpy_version", "supported_apps")
    tensors = template["network_data_format"]
    image = tensors["inputs"]["image"] | {
        "format": "hounsfield" if plan["modality"] == "CT" else "magnitude",
        "modality": plan["modality"],
        "num_channels": len(channels),
        "value_range": value_range(plan),
        "channel_def": {str(place): what for place, what in enumerate(channels)},
    }
    pred = tensors["outputs"]["pred"] | {
        "num_channels": len(labels) + 1,
        "channel_def": {"0": "background"} | {str(value): label for value, label in labels.items()},
    }
    metadata = {key: template[key] for key in kept} | {
        "references": [work for work in template["references"] if "ACC-UNet" in work],
        "version": FIRST_VERSION,
        "changelog": {FIRST_VERSION: "as planned, before its first training"},
        "required_packages_version": template["required_packages_version"] | {"accunet-monai": __version__},
        "name": _title(name),
        "task": f"Segmentation of {_listed(list(found.listing.labels.values()))} in {plan['modality']}",
        "description": f"ACC-UNet (2D) over slices of {plan['modality']}; planned on {len(found.facts)} cases.",
        "authors": "fill in",
        "copyright": "fill in",
        "data_source": found.listing.name or "fill in",
        "data_type": "nifti",
        "image_classes": f"{', '.join(kinds)} on one grid" if kinds else f"single-channel {plan['modality']}",
        "label_classes": f"single-channel label map: {told}",
        "pred_classes": f"single-channel label map: {told}",
        "eval_metrics": {},
        "intended_use": "Research only, not for diagnosis.",
        "input_contract": _contract(found.facts, plan),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }
    return json.dumps(metadata, indent=1, ensure_ascii=False) + "\n"


def make_segments(name: str, found: Examination) -> str:
    """``configs/segments.yaml``: what the labels mean in DICOM SEG; codes from SNOMED CT where a name has one."""
    segments = []
    labels = named_labels(found.listing.labels)
    for place, (value, label) in enumerate(labels.items()):
        coded, modifier = _coded(label)
        red, green, blue = colorsys.hsv_to_rgb(place * 0.618034 % 1, 0.65, 0.9)
        segment = {
            "label": value,
            "name": _ascii(label),
            "category": _STRUCTURE,
            "type": coded or _STRUCTURE,
            "colour": [round(255 * part) for part in (red, green, blue)],
        }
        segments.append(segment | ({"modifier": modifier} if modifier else {}))
    content = {"algorithm": {"name": _title(name), "version": FIRST_VERSION}, "segments": segments}
    header = (
        "# What the labels mean in DICOM SEG. Where the type is only Anatomical Structure, pydicom's table has no\n"
    )
    header += "# code for the name: look it up in SNOMED CT before results leave for a PACS.\n"
    return header + dumped(content)


def make_plan_file(found: Examination, plan: Plan, dataset: str) -> str:
    """``docs/plan.yaml``: every choice under its reason, to be edited and given back with ``--plan``."""
    lines = [f"# The plan for {dataset}. Edit values, then: accunet plan DATASET --output FOLDER --plan THIS_FILE"]
    lines += [f"# Warning: {warning}" for warning in found.warnings]
    for choice in plan.choices:
        lines += ["", *(f"# {line}" for line in _wrapped(choice.reason)), dumped({choice.key: choice.value}).strip()]
    return "\n".join(lines) + "\n"


def make_page(name: str, found: Examination, choices: Sequence[Choice]) -> str:
    """``docs/README.md``: the data, the plan, and what to do next."""
    subjects = len({fact.subject for fact in found.facts})
    rows = [f"| {choice.key} | {_cell(choice.value)} | {_cell(choice.reason)} |" for choice in choices]
    warnings = [f"- {warning}" for warning in found.warnings] or ["None."]
    counts = {value: sum(value in fact.counts for fact in found.facts) for value in found.listing.labels}
    labels = [f"| {value} | {_cell(label)} | {counts[value]} |" for value, label in found.listing.labels.items()]
    return "\n".join(
        [
            f"# {_title(name)}",
            "",
            "Not a medical device. Planned by `accunet plan`; there are no weights before the first training.",
            "",
            "## Data",
            "",
            f"{len(found.facts)} cases of {subjects} subjects, {found.modality}, layout: {found.listing.layout}.",
            "",
            "| value | label | cases |",
            "|---|---|---|",
            *labels,
            "",
            "## What should be known",
            "",
            *warnings,
            "",
            "## Plan",
            "",
            "`docs/plan.yaml` is this table as a file: edit it and plan again with `--plan`.",
            "",
            "| choice | value | reason |",
            "|---|---|---|",
            *rows,
            "",
            "## Training",
            "",
            "```",
            f"python -m monai.bundle run --config_file {name}/configs/train.yaml",
            f"accunet bundle install-weights {name} runs/{name}/best.safetensors",
            f"accunet bundle manifest {name}",
            f"accunet evaluate {name}",
            "```",
            "",
            "Run from the folder that the bundle is in. `--folds` of `accunet train` cross-validates instead.",
            "",
        ]
    )


def make_licence(found: Examination) -> str:
    """``LICENSE``: whose terms hold is not ours to say."""
    stated = found.listing.licence or "not stated in the dataset's description"
    return (
        "The configs of this bundle are under Apache-2.0, as the rest of accunet-monai.\n\n"
        "Weights made from data are subject to the data's licence. The data's licence, as the dataset states it:\n\n"
        f"  {stated}\n\nBefore sharing, state here under which licence weights, split and documentation are shared.\n"
    )


def _contract(facts: Sequence[CaseFacts], plan: Plan) -> dict[str, Any]:
    """The cases' own ranges, widened: what lies outside is flagged; another modality is refused."""
    told = ["spacing_mm", "extent_mm", "tilt_degrees"]
    told += (
        ["percentile_0.5", "percentile_99.5"] if plan["modality"] == "CT" else ["relative_median", "relative_deviation"]
    )
    rules: list[dict[str, Any]] = [{"quantity": "modality", "allowed": [plan["modality"]], "otherwise": "refuse"}]
    for quantity in told:
        pairs = [
            [_widened(min(low for low, _ in axis), -MARGIN), _widened(max(high for _, high in axis), MARGIN)]
            for axis in zip(*(fact.ranges[quantity] for fact in facts), strict=True)
        ]
        if quantity == "tilt_degrees":
            pairs = [[0.0, max(20.0, pairs[0][1])]]
        rules.append({"quantity": quantity, "range": pairs if len(pairs) > 1 else pairs[0], "otherwise": "warn"})
    made_from = f"the ranges of the {len(facts)} planned cases, widened by {MARGIN:.0%}, are flagged beyond"
    return {"made_from": made_from, "rules": rules}


def _widened(value: float, share: float) -> float:
    return float(f"{value + abs(value) * share:.3g}")


def _coded(label: str) -> tuple[dict[str, str] | None, dict[str, str] | None]:
    """Codes of a label's name, if it is among DICOM's types of segments (PS3.16, CID 7151), and of its side."""
    words = re.findall(r"[a-z]+", label.lower())
    side = next((word for word in words if word in ("left", "right")), None)
    keyword = "".join(word.capitalize() for word in words if word != side)
    found = getattr(codes.CID7151, keyword) if keyword in codes.CID7151.dir() else None
    term = None if found is None else {"code": found.value, "scheme": "SCT", "meaning": found.meaning}
    code = {"left": "7771000", "right": "24028007"}
    modifier = None if side is None else {"code": code[side], "scheme": "SCT", "meaning": side.capitalize()}
    return term, modifier


def _ascii(text: str) -> str:
    """A name as DICOM objects of any character set can hold it."""
    plain = "".join(letter if letter.isascii() and letter.isprintable() and letter != "\\" else "_" for letter in text)
    return plain.strip()[:64] or "label"


def _title(name: str) -> str:
    return _ascii(f"{name.replace('_', ' ')} with ACC-UNet")


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:5])
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more labels" if rest else "")


def _wrapped(text: str, width: int = 110) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def _cell(value: Any) -> str:
    return shown(value).replace("|", "\\|")
