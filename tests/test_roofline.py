"""The roofline counts what blocks do: against sums done by hand, and against the whole network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from accunet_monai.networks import ACCUNet, HANCBlock
from accunet_monai.networks.deploy import optimize_for_inference
from benchmarks import roofline
from benchmarks.roofline import Limits, Work, blocks_and_inputs, count

FLOAT = 4  # bytes


def test_a_block_is_counted_as_by_hand() -> None:
    block = optimize_for_inference(HANCBlock(2, 2, 4, k=1)).network
    with torch.inference_mode():
        work = count(block, (torch.zeros(1, 2, 4, 4),))
    pixels, expand, depthwise, contract, project = 16, 2 * 6, 9 * 6, 6 * 2, 2 * 4
    gate = 4 * 1 + 1 * 4
    assert work.operations == 2 * (pixels * (expand + depthwise + contract + project) + gate)
    biases = 6 + 6 + 2 + 4 + 1 + 4
    weights = expand + depthwise + contract + project + gate + biases + 2 * 4  # the gate's scale and shift
    assert work.least == FLOAT * (2 * pixels + weights + 4 * pixels)
    assert work.folded > FLOAT * pixels * (2 + 7 * 6 + 2)  # seven passes over the expanded map, and more
    assert work.least < work.fused <= work.folded - FLOAT * pixels * 7 * 6  # none of which is left


@pytest.mark.parametrize(
    ("module", "passes"),
    [(nn.ReLU(), 2), (nn.LeakyReLU(inplace=True), 2), (nn.Flatten(), 0), (nn.Sequential(nn.Tanh(), nn.Sigmoid()), 4)],
    ids=lambda value: type(value).__name__,
)
def test_every_operation_moves_what_it_reads_and_writes(module: nn.Module, passes: int) -> None:
    image = torch.zeros(2, 3, 8, 8)
    assert count(module, (image,)).folded == passes * image.nbytes


def test_the_blocks_are_all_of_the_network() -> None:
    network = optimize_for_inference(ACCUNet(2, 1, 2, base_filters=4))
    image = torch.zeros(1, 1, 32, 48)
    with torch.inference_mode():
        calls = blocks_and_inputs(network, image)
        counted = sum(count(block, inputs).operations for block, inputs in calls.values())
        with FlopCounterMode(display=False) as whole:
            network(image)
    assert len(calls) == 18 + 4 + 3 + 4 + 1  # HANC blocks, residual paths, MLFC passes, up-samplings, head
    assert counted == whole.get_total_flops()


def test_a_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    limits = Limits(bandwidth=10.0, operations=100.0)
    assert limits.floor(Work(operations=100, least=20, fused=30, folded=50), 20) == 2.0
    assert limits.floor(Work(operations=300, least=20, fused=30, folded=50), 20) == 3.0
    assert limits.floor(Work(operations=300, least=20, fused=30, folded=50), 50) == 5.0


def test_it_reports_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "roofline.md"
    monkeypatch.setattr(sys, "argv", ["roofline.py", "--quick", "--output", str(output)])
    roofline.main()
    rows = [line.split("|")[1:-1] for line in output.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[0]] == list(roofline.COLUMNS)
    assert len(rows) == 1 + 9 + 4 + 3 + 4 + 1 + 1
    figures = {row[0].strip(): [float(cell) for cell in (*row[1:5], *row[6:])] for row in rows[1:]}
    for operations, least, fused, folded, floor, moving, _, gap in figures.values():
        assert operations >= 0
        assert least <= fused <= folded
        assert floor <= moving
        assert gap > 0
    stages = list(figures.values())[:-1]
    assert sum(row[4] for row in stages) == pytest.approx(figures["whole network"][4], rel=0.02)  # printed to 3 digits
