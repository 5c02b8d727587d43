"""The label maps of the best validation, kept beside the best weights, so that a resumed training has them too."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import numpy.typing as npt

from accunet_monai.training.distributed import is_main, processes
from accunet_monai.volumes import atomic_output

BEST_VALIDATION = "best_validation.npz"


@dataclass(frozen=True)
class PackedLabels:
    """A label map in little memory."""

    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, label_map: npt.NDArray[np.integer]) -> PackedLabels:
        """Pack a label map; labels up to 65535."""
        return cls(label_map.shape, zlib.compress(label_map.astype("<u2").tobytes(), 1))

    def array(self) -> npt.NDArray[np.uint16]:
        """The label map."""
        return np.frombuffer(zlib.decompress(self.data), "<u2").reshape(self.shape)


class BestValidation:
    """Keeps the label maps of the validation with the highest score in a file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._score: float | None = None
        self._current: dict[str, PackedLabels] = {}

    def add(self, case: str, label_map: npt.NDArray[np.integer]) -> None:
        """A case of the validation that runs."""
        self._current[case] = PackedLabels.of(label_map)

    def decide(self, score: float) -> bool:
        """The validation has ended: keep it if its score is the highest so far; returns whether it is.

        Of several processes all must call this; the first one writes the label maps of all.
        """
        current, self._current = _gathered(self._current), {}
        if not is_main() or not score > self.score():
            return False
        names = list(current)
        arrays = {f"labels_{n}": np.frombuffer(current[name].data, np.uint8) for n, name in enumerate(names)}
        about = {"score": score, "cases": [[name, current[name].shape] for name in names]}
        with atomic_output(self.path) as stream:
            np.savez(stream, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        self._score = score
        return True

    def forget(self) -> None:
        """Begin anew: what lies there is of another training."""
        self.path.unlink(missing_ok=True)
        self._score = None

    def score(self) -> float:
        """The highest score so far, minus infinity before the first."""
        if self._score is None:
            self._score = float(self._about()["score"]) if self.path.is_file() else -math.inf
        return self._score

    def read(self) -> dict[str, PackedLabels]:
        """Case → label map of the best validation; empty where there is none."""
        if not self.path.is_file():
            return {}
        cases = self._about()["cases"]
        with np.load(self.path) as stored:
            return {
                name: PackedLabels(tuple(shape), stored[f"labels_{number}"].tobytes())
                for number, (name, shape) in enumerate(cases)
            }

    def _about(self) -> dict[str, Any]:
        with np.load(self.path) as stored:
            found: dict[str, Any] = json.loads(stored["about"].tobytes())
            return found


def _gathered(cases: dict[str, PackedLabels]) -> dict[str, PackedLabels]:
    if processes() == 1:
        return cases
    parts: Any = idist.all_gather([cases])
    return {name: labels for (part,) in parts for name, labels in part.items()}
