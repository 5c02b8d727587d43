"""Means over the iterations of an epoch, also of one in which the training was killed and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class EpochMeans:
    """Sums up numbers until the epoch ends."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: float) -> None:
        """A number of an iteration."""
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means; begins anew."""
        means = {name: self._sums[name] / count for name, count in self._counts.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._sums = {str(name): float(value) for name, value in state.get("sums", {}).items()}
        self._counts = {str(name): int(count) for name, count in state.get("counts", {}).items()}
