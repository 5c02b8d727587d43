"""Keyed pseudonyms: what stands for a patient, a study or a series in logs, metrics, pages and temporary names."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from accunet_monai.errors import PacsError

KEY_BYTES = 32


def make_key(path: Path) -> None:
    """Write a new random key that its owner alone can read.

    Raises:
        PacsError: ``KEY_EXISTS``; another key would make other pseudonyms of the same patients.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        hint = "Remove it first if it is meant; pseudonyms made with it can then not be made again."
        raise PacsError("KEY_EXISTS", "there is a file already.", path=path, hint=hint) from error
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(KEY_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())


class Pseudonyms:
    """Makes pseudonyms with a site's key.

    Args:
        path: the key's file, 64 hexadecimal digits.

    Raises:
        PacsError: ``KEY_MISSING``, ``KEY_INVALID``, or ``KEY_EXPOSED`` when others can read it.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "site.key")
        >>> make_key(file)
        >>> pseudonyms = Pseudonyms(file)
        >>> len(pseudonyms("patient", "1234")), pseudonyms("patient", "1234") == pseudonyms("study", "1234")
        (16, False)
    """

    def __init__(self, path: Path) -> None:
        hint = f"Make one: accunet pacs key {path}"
        try:
            text = path.read_text(encoding="ascii").strip()
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise PacsError("KEY_MISSING", "there is no readable key.", path=path, hint=hint) from error
        if mode & 0o077:
            raise PacsError("KEY_EXPOSED", "others than its owner can read it.", path=path, hint=f"chmod 600 {path}")
        try:
            self._key = bytes.fromhex(text)
        except ValueError as error:
            raise PacsError("KEY_INVALID", "a key is 64 hexadecimal digits.", path=path, hint=hint) from error
        if len(self._key) != KEY_BYTES:
            raise PacsError("KEY_INVALID", "a key is 64 hexadecimal digits.", path=path, hint=hint)

    def __call__(self, kind: str, value: str) -> str:
        """16 hexadecimal digits for a value; those of one kind (``patient``, ``study``, …) compare with each other."""
        return hmac.new(self._key, f"{kind}\0{value}".encode(), hashlib.sha256).hexdigest()[:16]
