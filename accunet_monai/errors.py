"""Every refusal of this package: a typed error with a stable code, what was found, where, and what to do.

Programs branch on ``code`` (it never changes once released), people read the message.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence

SHOWN_INSTANCES = 3
"""So many offending instances are named in a message; all of them are in ``SeriesError.instances``."""


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


class SeriesError(VolumeError):
    """DICOM objects do not make up one volume without guessing, or what was made of them is not what was meant.

    Args:
        code, message, path, hint: as of :class:`AccunetError`.
        series_uid: the SeriesInstanceUID concerned, if one is known.
        instances: the offending instances, by SOPInstanceUID where they have one, else by file name.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        hint: str | None = None,
        series_uid: str | None = None,
        instances: Sequence[str] = (),
    ) -> None:
        self.series_uid = series_uid
        self.instances = tuple(instances)
        super().__init__(code, message, path=path, hint=hint)

    def __str__(self) -> str:
        series = f" Series {self.series_uid}." if self.series_uid else ""
        shown = ", ".join(self.instances[:SHOWN_INSTANCES])
        more = len(self.instances) - SHOWN_INSTANCES
        instances = f" Instances: {shown}{f' and {more} more' if more > 0 else ''}." if shown else ""
        return f"{super().__str__()}{series}{instances}"

    def __reduce__(self) -> tuple[object, ...]:
        """As its base, with the series and its instances."""
        return _rebuild_series, (self.code, self.message, self.path, self.hint, self.series_uid, self.instances)


class DatasetError(AccunetError, ValueError):
    """A training or evaluation dataset is incomplete or contradicts itself."""


class BundleError(AccunetError, ValueError):
    """A bundle is missing, incomplete, unsafe, or used for something it was not made for."""


class NetworkError(AccunetError, ValueError):
    """Weights and network do not belong together."""


class WorkerError(AccunetError, RuntimeError):
    """A worker of a run did not start, or did not come back."""


class PacsError(AccunetError, RuntimeError):
    """A site's settings, storage, database or network peers do not allow what was asked."""


def did_you_mean(word: str, known: Iterable[object]) -> str | None:
    """For a hint: the known word nearest to an unknown one, or ``None`` when none is near.

    Example:
        >>> did_you_mean("datset_dir", ["dataset_dir", "device"])
        "Did you mean 'dataset_dir'?"
    """
    near = difflib.get_close_matches(word, [str(item) for item in known], n=1)
    return f"Did you mean {near[0]!r}?" if near else None


def _rebuild(cls: type[AccunetError], code: str, message: str, path: str | None, hint: str | None) -> AccunetError:
    return cls(code, message, path=path, hint=hint)


def _rebuild_series(
    code: str, message: str, path: str | None, hint: str | None, series_uid: str | None, instances: tuple[str, ...]
) -> SeriesError:
    return SeriesError(code, message, path=path, hint=hint, series_uid=series_uid, instances=instances)
