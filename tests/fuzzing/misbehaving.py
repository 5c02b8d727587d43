"""A check that fails in the way that its case names. On its own, as every new process imports it."""

from __future__ import annotations

import os
import time
from pathlib import Path


def misbehave(case: str, folder: Path) -> str:
    """Gives ``fine`` for ``fine``; does something bad for any other case."""
    if list(folder.iterdir()):
        return "a folder that is not empty"
    (folder / "left behind").touch()
    if case == "untyped":
        raise KeyError(case)
    if case == "memory":
        return str(len(bytearray(3 << 30)))
    if case == "slow":
        time.sleep(60)
    if case == "abort":
        os.abort()
    if case == "exit":
        raise SystemExit(3)
    return case
