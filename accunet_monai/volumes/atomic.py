"""Files that are whole or absent: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".partial"
"""Ending of unfinished files: no reader of images takes it for a result, and folder runs do not match it."""


@contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a binary stream whose content appears at ``path`` only when the block ends without an error.

    The folder is made when it is missing. After an error nothing is left behind and an older file at ``path`` stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are private (0600), and a result must have the permissions the user's umask gives.
    partial = target.parent / f".{target.name[:100]}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
