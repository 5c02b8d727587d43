"""What each of several gloo processes does in the tests: trains its part of the same batches.

    python -m tests.training.two_processes --steps 24

compares two processes with one in float32, at the width and with the settings of the shipped training; and, for what
rounding alone does, one process with another whose first weights differ by 1e-7 of their values.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from torch import nn

from accunet_monai.networks import ACCUNet, weight_decay_groups
from accunet_monai.training import (
    GradientClip,
    MovingAverage,
    Repeatable,
    TrainingForward,
    main_first,
    make_loss,
    make_schedule,
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


def train_as_shipped(folder: Path, name: str, steps: int, nudge: float) -> None:
    """Train a network of the shipped width in float32 on this process's part of made batches; write the losses."""
    torch.manual_seed(7)
    network = ACCUNet(2, 3, 3, base_filters=16).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for weight in network.parameters():
            weight *= 1 + nudge
    optimizer = torch.optim.AdamW(weight_decay_groups(network, 0.03), lr=0.0015)
    schedule = make_schedule("one_cycle", optimizer, 1, steps, 0.1)
    loss_function, module = make_loss("dice_ce"), parallel(network, "cpu")
    generator = torch.Generator().manual_seed(0)
    mine = slice(rank() * 8 // processes(), (rank() + 1) * 8 // processes())
    losses = []
    for _ in range(steps):
        smooth = torch.nn.functional.interpolate(
            torch.randn(8, 1, 8, 6, generator=generator), (64, 48), mode="bilinear"
        )
        label = (smooth > 0.7).long() + (smooth > 1.2).long()
        image = smooth + 0.5 * torch.randn(8, 3, 64, 48, generator=generator)
        optimizer.zero_grad()
        loss = loss_function(module(image[mine].contiguous(memory_format=torch.channels_last)), label[mine])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    if rank() == 0:
        (folder / f"{name}.json").write_text(json.dumps(losses))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    steps = parser.parse_args().steps
    runs = {"one": (1, 0.0), "two": (2, 0.0), "nudged": (1, 1e-7)}
    with tempfile.TemporaryDirectory() as folder:
        for name, (count, nudge) in runs.items():
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            arguments = (count, port, "train_as_shipped", (Path(folder), name, steps, nudge))
            started = [multiprocessing.Process(target=start, args=(number, *arguments)) for number in range(count)]
            for process in started:
                process.start()
            for process in started:
                process.join()
        one, two, nudged = (json.loads((Path(folder) / f"{name}.json").read_text()) for name in runs)
    print("step  one process  two: difference  nudged: difference")
    for step, (alone, together, other) in enumerate(zip(one, two, nudged, strict=True), 1):
        print(f"{step:4d}  {alone:11.6f}  {together - alone:15.1e}  {other - alone:18.1e}")


if __name__ == "__main__":
    main()
