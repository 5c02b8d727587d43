"""Benchmarks of several parts; imports nothing heavy, since processes that decode import this again."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable


def some_of(parts: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """For ``type=``: a comma list of parts of a benchmark."""

    def chosen(text: str) -> tuple[str, ...]:
        if unknown := ", ".join(sorted(set(text.split(",")) - set(parts))):
            raise argparse.ArgumentTypeError(f"unknown parts {unknown}; known are {', '.join(parts)}")
        return tuple(text.split(","))

    return chosen
