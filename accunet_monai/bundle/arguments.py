"""What a Predictor hands on to the components of a bundle: known arguments, of bounded size.

An allowed class can still do harm by its arguments: MONAI 1.6.1 opens a debugger for ``_debug_``, numpy makes a
gigabyte of ``dtype: S1000000000``, and a width of 10⁹ fills the memory before any weight is compared. So arguments are
on a list, too. None of them is a path, a callable or the name of a class; a test goes through the parameters of all
allowed targets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accunet_monai.errors import BundleError, did_you_mean

PREPROCESSING = "@preprocessing"
"""The one reference a literal section may hold, as the ``transform`` of an ``Invertd``."""

MAX_WINDOW = 2**27
"""Voxels of a window or of a resized volume: 512³, half a gigabyte as float32."""

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int16", "int32", "int64")


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test."""

    says: str
    holds: Callable[[Any], bool]


def check_arguments(component: Mapping[str, Any], where: str, path: Path) -> None:
    """Refuse arguments of a literal section's component that are unknown or out of bounds, nested components included.

    Args:
        component: a mapping with ``_target_``, free of expressions.
        where: its place in the config, for the message.
        path: of the config.

    Raises:
        BundleError: ``BUNDLE_ARGUMENT``.
    """
    for name, value in component.items():
        place = f"{where}.{name}"
        if name in ("_target_", "_desc_"):
            continue
        if name == "transforms":
            for index, item in enumerate(_listed(value, place, path)):
                check_arguments(item, f"{place}[{index}]", path)
        elif name not in ARGUMENTS:
            message = f"{place}: not among the arguments that a Predictor hands on."
            raise BundleError("BUNDLE_ARGUMENT", message, path=path, hint=did_you_mean(str(name), ARGUMENTS))
        elif not (value is None or ARGUMENTS[name].holds(value)):
            message = f"{place}: expected {ARGUMENTS[name].says}, found {_shown(value)}."
            raise BundleError("BUNDLE_ARGUMENT", message, path=path)


def _listed(value: Any, place: str, path: Path) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Mapping) and "_target_" in item for item in items):
        raise BundleError("BUNDLE_ARGUMENT", f"{place}: expected transforms, each with its _target_.", path=path)
    return items


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return finite and not isinstance(value, bool) and least <= value <= most


def _number(least: float = -math.inf, most: float = math.inf) -> Rule:
    bounds = "a finite number" if math.isinf(least) else f"a number of {least:g} to {most:g}"
    return Rule(bounds, lambda value: _is_number(value, least, most))


def _whole(least: int, most: int) -> Rule:
    return Rule(
        f"a whole number of {least} to {most}",
        lambda value: isinstance(value, int) and _is_number(value, least, most),
    )


def _one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices)


def _some(rule: Rule, most: int) -> Rule:
    """One such value, or a list of them; ``null`` among them where a transform has one for each key."""

    def holds(value: Any) -> bool:
        items = value if isinstance(value, list) else [value]
        return len(items) <= most and all(item is None or rule.holds(item) for item in items)

    return Rule(f"{rule.says}, or a list of at most {most} of these", holds)


def _sizes(value: Any) -> bool:
    sizes = [size or 0 for size in value] if isinstance(value, list) else [value] * 3
    whole = len(sizes) <= 3 and all(isinstance(size, int) and _is_number(size, -1, 8192) for size in sizes)
    return whole and math.prod(max(size, 1) for size in sizes) <= MAX_WINDOW


def _layer(value: Any) -> bool:
    """The name of a layer, or its name and numbers for its constructor."""
    name, settings = value if isinstance(value, list) and len(value) == 2 else (value, {})
    if not (_is_word(name) and isinstance(settings, Mapping)):
        return False
    return all(isinstance(item, bool) or _is_number(item, -4096, 4096) for item in settings.values())


def _volumes(value: Any) -> bool:
    volumes = list(value.values()) if isinstance(value, Mapping) else [value]
    return len(volumes) <= 1024 and all(_is_number(volume, 0, 1e9) for volume in volumes)


def _pairs(value: Any) -> bool:
    pairs = isinstance(value, list) and len(value) == 3
    return pairs and all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_word, pair)) for pair in value)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


_FLAG = _some(Rule("true or false", lambda value: isinstance(value, bool)), 16)
_NAME = _some(Rule("a word", _is_word), 16)
_MODE = _some(Rule("a word, or a spline order of 0 to 5", lambda v: _is_word(v) or _whole(0, 5).holds(v)), 16)
_SIZES = Rule(f"up to three sizes of at most {MAX_WINDOW} voxels together", _sizes)
_LAYER = Rule("a layer's name, or its name and numbers of at most 4096", _layer)
_NUMBER = _number()
_NUMBERS = _some(_NUMBER, 1024)
_SPACING = _some(
    Rule(
        "a number of 0.05 to 1000, or -1 or 0 for an axis that stays as it is",
        lambda value: _is_number(value, 0.05, 1000) or (_is_number(value, -1, 0) and value in (-1, 0)),
    ),
    3,
)

_BY_RULE: tuple[tuple[Rule, str], ...] = (
    (_NAME, "keys orig_keys meta_keys orig_meta_keys meta_key_postfix"),
    (
        _FLAG,
        "allow_missing_keys anti_alias anti_aliasing align_corners argmax as_closest_canonical bias by_measure "
        "cache_roi_weight_map channel_wise clip diagonal ensure_same_shape independent independent_channels is_onehot "
        "lazy map_items nearest_interp nonzero progress recompute_affine relative scale_extent sigmoid softmax "
        "to_tensor unpack_items use_checkpoint",
    ),
    (_MODE, "mode padding_mode interpolation label_interpolation size_mode rounding"),
    (_NAME, "axcodes form mlfc output upsample views"),
    (_LAYER, "act norm"),
    (Rule("a word or a finite number", lambda value: _is_word(value) or _is_number(value)), "foreground"),
    (_NUMBER, "a_min a_max b_min b_max center cval fill_nonfinite lower skip_below upper width"),
    (_NUMBERS, "subtrahend divisor threshold"),
    (_some(_number(0, 100), 3), "anti_aliasing_sigma sigma_scale"),
    (_some(_number(0, 0.9), 3), "overlap"),
    (_some(_number(0, 0.95), 16), "dropout"),
    (_SPACING, "pixdim spacing min_pixdim max_pixdim"),
    (_SIZES, "roi_size spatial_size input_shape"),
    (_whole(1, 1024), "sw_batch_size in_channels out_channels channels"),
    (_whole(1, 128), "base_filters"),
    (_some(_whole(1, 1024), 6), "features"),
    (_whole(0, 16), "mlfc_iterations context_slices"),
    (_whole(0, 3), "spatial_dim spatial_dims connectivity"),
    (_whole(-1, 2), "buffer_dim"),
    (_some(_whole(0, 2), 3), "mirror_axes"),
    (Rule("a word or a position", lambda value: _is_word(value) or _whole(0, 99).holds(value)), "output_key"),
    (_whole(1, 1024), "buffer_steps num_components"),
    (_whole(0, 2**31), "min_size cpu_thresh"),
    (_whole(0, 100_000), "time_point"),
    (_some(_whole(0, 65535), 1024), "applied_labels largest_component fill_holes regions"),
    (Rule("a volume, or one for each label", _volumes), "minimum_volume_mm3"),
    (_some(_whole(1, 256), 16), "to_onehot"),
    (_some(_one_of(*_DTYPES), 16), "amp dtype"),
    (
        Rule("cpu, cuda or cuda:N", lambda v: isinstance(v, str) and bool(re.fullmatch(r"cpu|cuda(:\d)?", v))),
        "device sw_device",
    ),
    (Rule("a UID", lambda v: isinstance(v, str) and bool(re.fullmatch(r"[0-9.]{1,64}", v))), "series_uid"),
    (Rule("three pairs of words", _pairs), "labels"),
    (Rule(repr(PREPROCESSING), lambda value: value == PREPROCESSING), "transform"),
)

ARGUMENTS: Mapping[str, Rule] = {name: rule for rule, names in _BY_RULE for name in names.split()}
"""Argument → what a Predictor takes for it, whatever the component: besides ``transforms``, and always ``null``."""
