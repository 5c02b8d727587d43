"""Every refusal of this package: a typed error with a stable code, what was found, where, and what to do.

Programs branch on ``code`` (it never changes once released), people read the message.
"""

from __future__ import annotations

import os


class AccunetError(Exception):
    """Base of all errors raised on purpose by accunet-monai.

    Args:
        code: stable identifier in capitals, e.g. ``VOLUME_NOT_3D``.
        message: what was found and what was expected.
        path: the file or folder concerned, if any.
        hint: what the user can do about it, if anything.
    """

    def __init__(
        self, code: str, message: str, *, path: str | os.PathLike[str] | None = None, hint: str | None = None
    ) -> None:
        self.code = code
        self.message = message
        self.path = None if path is None else os.fspath(path)
        self.hint = hint
        where = f"{self.path}: " if self.path else ""
        advice = f" {hint}" if hint else ""
        super().__init__(f"[{code}] {where}{message}{advice}")

    def __reduce__(self) -> tuple[object, ...]:
        """Survives pickling, as worker processes of a data loader need it."""
        return _rebuild, (type(self), self.code, self.message, self.path, self.hint)


class VolumeError(AccunetError, ValueError):
    """A file or array is not a volume this package can read or write without guessing."""


class DatasetError(AccunetError, ValueError):
    """A training or evaluation dataset is incomplete or contradicts itself."""


class BundleError(AccunetError, ValueError):
    """A bundle is missing, incomplete, unsafe, or used for something it was not made for."""


class NetworkError(AccunetError, ValueError):
    """Weights and network do not belong together."""


def _rebuild(cls: type[AccunetError], code: str, message: str, path: str | None, hint: str | None) -> AccunetError:
    return cls(code, message, path=path, hint=hint)
