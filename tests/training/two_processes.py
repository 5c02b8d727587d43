"""What each of several gloo processes does in the tests: trains its part of the same batches."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from torch import nn

from accunet_monai.networks import ACCUNet
from accunet_monai.training import (
    GradientClip,
    MovingAverage,
    Repeatable,
    TrainingForward,
    main_first,
    make_loss,
    parallel,
    start_processes,
    trained_module,
    validation_sampler,
)
from accunet_monai.training.distributed import anywhere, global_sum, processes, rank, separate_batch_norms

BATCH, ITERATIONS = 4, 5


def batches() -> list[dict[str, torch.Tensor]]:
    """The global batches; the second half of each has other intensities and far more foreground than the first."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(ITERATIONS):
        image = torch.randn(BATCH, 1, 32, 32, generator=generator)
        image[BATCH // 2 :] = image[BATCH // 2 :] * 3 + 1
        label = (torch.rand(BATCH, 1, 32, 32, generator=generator) < 0.1).long()
        label[BATCH // 2 :] += (torch.rand(BATCH // 2, 1, 32, 32, generator=generator) < 0.5).long()
        label[0, 0, :5] = 9  # not annotated
        found.append({"image": image.double(), "label": label})
    return found


def train_part(folder: Path, loss: str, deep: bool, parts: int) -> None:
    """Train on this process's part of each batch; the first process writes losses and weights."""
    from monai.engines import SupervisedTrainer

    torch.manual_seed(7)  # equal weights everywhere
    network = ACCUNet(2, 1, 3, base_filters=2, mlfc_iterations=1).double()  # norms of so few pixels magnify rounding
    module = trained_module(network, deep)
    mine = slice(rank() * BATCH // processes(), (rank() + 1) * BATCH // processes())
    average = MovingAverage(network, 0.1)
    # Short steps: so narrow a network's first gradients have norms of hundreds and magnify rounding from step to step.
    # Not Adam, which takes the rounding of a gradient of 0, as a bias before a norm has, for a direction.
    optimizer = torch.optim.SGD(module.parameters(), lr=2e-4)
    trainer: Any = SupervisedTrainer(
        "cpu",
        1,
        [{key: value[mine] for key, value in batch.items()} for batch in batches()],
        parallel(module, "cpu"),
        optimizer,
        make_loss(loss, deep, ignore_label=9),
        inferer=TrainingForward(parts=parts),
        train_handlers=[Repeatable(0), average, GradientClip(module, 1.0)],
        decollate=False,
    )
    losses: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
    trainer.run()
    separate_batch_norms(network)
    if rank() == 0:
        kinds = sorted(
            {type(one).__name__ for one in network.modules() if isinstance(one, nn.modules.batchnorm._NormBase)}
        )
        told = {"losses": losses, "keys": list(network.state_dict()), "kinds": kinds}
        weights = {key: value.tolist() for key, value in average.network.state_dict().items()}
        (folder / "out.json").write_text(json.dumps({**told, "weights": weights}))


def small_facts(folder: Path) -> None:
    """Each process writes what the helpers tell it."""
    main_first((folder / "made").touch)
    assert (folder / "made").exists()
    number = torch.tensor([float(rank() + 1)], requires_grad=True)
    total = global_sum(number * number)
    (total * (rank() + 1)).backward()
    sampler = validation_sampler(range(5))
    told = {
        "sum": float(total),
        "gradient": float(number.grad),  # type: ignore[arg-type]
        "any": [anywhere(rank() == 1), anywhere(False)],
        "cases": None if sampler is None else list(sampler),
    }
    (folder / f"facts_{rank()}.json").write_text(json.dumps(told))


def train_bundle(folder: Path, values: dict[str, Any]) -> None:
    """Train a whole bundle, as ``monai.bundle run`` would in each process."""
    from tests.training.tiny_bundle import train

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    train(folder, values)


def start(number: int, count: int, port: int, what: str, arguments: tuple[Any, ...]) -> None:
    """In a process of its own, with what torchrun sets."""
    warnings.simplefilter("ignore")
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    start_processes("cpu")
    globals()[what](*arguments)
    torch.distributed.destroy_process_group()
