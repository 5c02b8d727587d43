"""Which labels are of one side of the body: a mirrored image would need others."""

from __future__ import annotations

import re
from collections.abc import Collection

_WORDS = {"l", "r", "lt", "rt", "lft", "rgt", "lh", "rh", "sin", "dex", "dx", "sx", "destro", "destra"}
_WORDS |= {"lv", "rv", "la", "ra"}  # the heart's chambers
_BEGINNINGS = ("link", "recht", "sinist", "dext", "gauch", "droit", "izq", "derech")
_UNNAMED = {"label", "class", "segment", "region", "structure", "object", "roi", "mask"}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def has_side(name: str) -> bool:
    """Whether a label's name says left or right, in whatever manner; in doubt it does.

    Example:
        >>> [has_side(name) for name in ("Lung_L", "rh.cortex", "LKidney", "linke Niere")]
        [True, True, True, True]
        >>> [has_side(name) for name in ("liver", "vertebra L1")]
        [False, False]
    """
    if any(side in name.lower() for side in ("left", "right")):
        return True
    return any(word in _WORDS or word.startswith(_BEGINNINGS) for word in _words(name))


def unnamed(names: Collection[str]) -> list[str]:
    """Those that say nothing of what they are.

    Example:
        >>> unnamed(["label 1", "2", "liver"])
        ['label 1', '2']
    """
    return [name for name in names if _UNNAMED.issuperset(_words(name))]


def _words(name: str) -> list[str]:
    """In lower case, split at camel case and at whatever is no letter; L1 to L5 are vertebrae, R1 a rib."""
    found = re.findall(r"[^\W\d_]+\d*", _CAMEL.sub(" ", name))
    words = [word.lower() for word in found]
    return [word if re.fullmatch(r"l\d+", word) else word.rstrip("0123456789") for word in words]
