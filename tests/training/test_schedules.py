"""Learning rates by hand and against PyTorch's own schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR

from accunet_monai.errors import NetworkError
from accunet_monai.training import make_schedule


def optimizer(rate: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates(name: str, epochs: int, length: int, rate: float = 1e-3, **more: Any) -> list[float]:
    """The learning rate of each iteration."""
    steps = optimizer(rate)
    schedule = make_schedule(name, steps, epochs, length, **more)
    found = []
    for _ in range(epochs * length):
        found.append(steps.param_groups[0]["lr"])
        steps.step()
        schedule.step()
    return found


def test_constant() -> None:
    assert rates("constant", 2, 3) == [1e-3] * 6


def test_poly_by_hand() -> None:
    found = rates("poly", 2, 5)
    assert found == pytest.approx([1e-3 * (1 - step / 10) ** 0.9 for step in range(10)])
    assert found[5] == pytest.approx(1e-3 * 0.5358867)


def test_cosine_restarts_are_the_papers() -> None:
    found = rates("cosine_restarts", 22, 2)
    assert found[0] == found[1] == 1e-3
    assert found[2 * 5] == pytest.approx(5.5e-4)  # half way between 1e-3 and 1e-4
    assert found[2 * 9] == pytest.approx(1e-4 + 9e-4 * (1 + math.cos(0.9 * math.pi)) / 2)
    assert found[2 * 10] == found[2 * 20] == pytest.approx(1e-3)
    theirs = optimizer()
    schedule = CosineAnnealingWarmRestarts(theirs, T_0=10, eta_min=1e-4)
    for epoch in range(22):
        assert found[2 * epoch] == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        schedule.step()


def test_one_cycle_is_pytorchs() -> None:
    theirs = optimizer()
    schedule = OneCycleLR(theirs, 1e-3, total_steps=41, pct_start=0.1)
    found = rates("one_cycle", 4, 10, warmup=0.1)
    for rate in found:
        assert rate == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        schedule.step()
    assert max(found) == pytest.approx(1e-3, rel=2e-3)
    assert found[0] == pytest.approx(1e-3 / 25)


@pytest.mark.parametrize("name", ["constant", "poly", "cosine_restarts"])
def test_warm_up_rises_linearly_to_the_schedule(name: str) -> None:
    plain, warmed = rates(name, 4, 5), rates(name, 4, 5, warmup=0.25)
    assert warmed[:4] == pytest.approx([plain[step] * (step + 1) / 5 for step in range(4)])
    assert warmed[4:] == pytest.approx(plain[4:])


def test_short_trials_have_a_schedule_too() -> None:
    assert len(rates("one_cycle", 1, 1)) == 1


def test_unknown_names() -> None:
    with pytest.raises(NetworkError, match="Did you mean 'one_cycle'") as caught:
        make_schedule("onecycle", optimizer(), 1, 1)
    assert caught.value.code == "SCHEDULE_UNKNOWN"
