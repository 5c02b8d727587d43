"""Handlers, precision, parts of batches and progress on small real engines."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from rich.console import Console
from torch import Tensor, nn

from accunet_monai.errors import NetworkError
from accunet_monai.networks import ACCUNet, load_network
from accunet_monai.training import (
    FinalValidation,
    GradientClip,
    MovingAverage,
    RichProgress,
    StopOnNonFinite,
    TrainingForward,
    TrainingState,
    WeightsSaver,
    make_loss,
    training_facts,
    uses_scaler,
)
from accunet_monai.training.find_lr import find_learning_rate
from accunet_monai.training.resume import state_path
from accunet_monai.training.state_file import read_state


def evaluator_with(scores: list[float]) -> Engine:
    """An engine whose metric takes the given values in turn."""
    values = iter(scores)
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.COMPLETED, lambda e: e.state.metrics.update(val_mean_dice=next(values)))
    return engine


def test_the_best_weights_are_those_of_the_best_score(tmp_path: Path) -> None:
    network = ACCUNet(2, 1, 2, base_filters=2)
    evaluator = evaluator_with([0.5, 0.8, 0.7])
    WeightsSaver(network, tmp_path).attach(evaluator)
    heads = []
    for _ in range(3):
        torch.nn.init.normal_(network.head.weight)
        heads.append(network.head.weight.detach().clone())
        evaluator.run([0])
    assert torch.equal(load_network(tmp_path / "best.safetensors").head.weight, heads[1])
    assert torch.equal(load_network(tmp_path / "last.safetensors").head.weight, heads[2])


def trainer_with(
    network: torch.nn.Module, loss: Callable[..., torch.Tensor], handlers: list[Any], epochs: int = 2
) -> Any:
    batch = {"image": torch.randn(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16)}
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=[batch, batch],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        loss_function=loss,
        train_handlers=handlers,
        decollate=False,
    )


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    network = torch.nn.Conv2d(1, 1, 1)
    calls = iter([1.0, float("nan"), 1.0, 1.0])
    trainer = trainer_with(network, lambda pred, label: pred.mean() * 0 + next(calls), [StopOnNonFinite()])
    with pytest.raises(NetworkError, match="epoch 1, iteration 2") as caught:
        trainer.run()
    assert caught.value.code == "LOSS_NOT_FINITE"


def test_gradients_are_clipped_to_the_norm() -> None:
    network = torch.nn.Conv2d(1, 1, 1)
    norms = []
    trainer = trainer_with(network, lambda pred, label: 1e3 * pred.square().mean(), [GradientClip(network, 0.5)], 1)
    before = [p.detach().clone() for p in network.parameters()]
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: norms.append(e.state.gradient_norm))
    trainer.run()
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(network.parameters(), before, strict=True)]).norm()
    assert min(norms) > 0.5
    assert float(moved) <= 2 * 0.5 * 0.01 + 1e-6  # two steps of lr × clipped norm


@pytest.mark.parametrize(("interval", "expected"), [(1, [1, 2, 3]), (2, [2, 3]), (5, [3])])
def test_every_run_ends_validated(interval: int, expected: list[int]) -> None:
    case = {"image": torch.zeros(1, 1, 4, 4), "label": torch.zeros(1, 1, 4, 4)}
    evaluator = SupervisedEvaluator("cpu", [case], torch.nn.Identity(), decollate=False)
    validated: list[int] = []
    evaluator.add_event_handler(Events.STARTED, lambda e: validated.append(e.state.max_epochs))
    network = torch.nn.Conv2d(1, 1, 1)
    handlers = [ValidationHandler(interval, evaluator), FinalValidation(evaluator)]
    trainer_with(network, lambda pred, label: pred.square().mean(), handlers, epochs=3).run()
    assert validated == expected


def test_without_a_limit_gradients_stay_and_are_measured() -> None:
    network = nn.Conv2d(1, 1, 1)
    trainer = trainer_with(network, lambda pred, label: 1e3 * pred.mean(), [GradientClip(network, None)], 1)
    trainer.run()
    norm = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm()
    assert trainer.state.gradient_norm == pytest.approx(float(norm))
    assert float(norm) > 900


def test_with_a_scaler_the_true_gradient_is_clipped() -> None:
    network = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    engine = SimpleNamespace(scaler=scaler, optimizer=optimizer, state=SimpleNamespace(epoch=1, iteration=1))
    for slope, expected in ((0.25, 0.25), (8.0, 0.5)):
        before = float(network.weight.detach())
        optimizer.zero_grad()
        scaler.scale((network(torch.ones(1, 1)) * slope).sum()).backward()
        GradientClip(network, 0.5).clip(engine)
        assert engine.state.gradient_norm == pytest.approx(slope)
        scaler.step(optimizer)
        scaler.update()
        assert before - float(network.weight.detach()) == pytest.approx(expected, rel=1e-4)
    optimizer.zero_grad()
    scaler.scale((network(torch.ones(1, 1)) * float("inf")).sum()).backward()
    before = float(network.weight.detach())
    GradientClip(network, 0.5).clip(engine)  # not refused: the scaler leaves the step out
    scaler.step(optimizer)
    scaler.update()
    assert (float(network.weight.detach()), scaler.get_scale()) == (before, 512.0)


def test_the_scalers_scale_is_part_of_the_state(tmp_path: Path) -> None:
    network = nn.Conv2d(1, 1, 1)
    trainer = trainer_with(network, nn.MSELoss(), [])
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    trainer.state.iteration = 2
    TrainingState(tmp_path, {"network": network}).save(trainer)
    other = trainer_with(network, nn.MSELoss(), [])
    other.scaler = torch.amp.GradScaler("cpu")
    keeper = TrainingState(tmp_path, {"network": network}, resume=True)
    keeper._load(other, read_state(state_path(tmp_path)))
    assert other.scaler.get_scale() == 64.0


def test_the_moving_average_by_hand() -> None:
    """Shares 0.5, 0.3, 0.1, 0.1 of the new weights, warmed up over three iterations."""
    network = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    average = MovingAverage(network, 0.1, warmup=3)
    trainer = trainer_with(network, lambda pred, label: pred.mean() * 0, [average])
    values = iter([3.0, 5.0, 2.0, 4.0])
    trainer._event_handlers[Events.ITERATION_COMPLETED].insert(  # before the average looks
        0, (lambda: nn.init.constant_(network.weight, next(values)), (), {})
    )
    trainer.run()
    expected = 1.0
    for share, value in zip((0.5, 0.3, 0.1, 0.1), (3.0, 5.0, 2.0, 4.0), strict=True):
        expected = (1 - share) * expected + share * value
    assert float(average.network.weight.detach()) == pytest.approx(expected)
    assert MovingAverage(network).network is network


# ----------------------------------------------------------------------------------------------------------------------
# Precision and parts


def small_network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(dropout), nn.Conv2d(4, 2, 1))


def gradients(network: nn.Module, forward: TrainingForward, image: Tensor, label: Tensor) -> Tensor:
    torch.manual_seed(2)
    network.zero_grad()
    make_loss("dice_ce")(forward(image, network), label).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def batch_of_six() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.randint(0, 2, (6, 1, 8, 8), generator=generator)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch(parts: int) -> None:
    image, label = batch_of_six()
    network = small_network()
    network[1].eval()  # type: ignore[index]
    whole = gradients(network, TrainingForward(), image, label)
    found = gradients(network, TrainingForward(parts=parts), image, label)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
    summed = torch.zeros_like(whole)
    for one, its in zip(image.chunk(parts), label.chunk(parts), strict=True):
        summed += gradients(network, TrainingForward(), one, its) / parts
    assert float((summed - whole).abs().max()) > 1e-5  # what adding up small batches' losses gives


def test_in_parts_only_one_part_is_remembered_at_a_time() -> None:
    image, _ = batch_of_six()
    sizes: list[int] = []
    network = small_network()
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.numel() if tensor.dim() == 4 and tensor.shape[1] == 4 else 0)
        return tensor

    for parts in (1, 6):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            TrainingForward(parts=parts)(image, network)
        sizes.append(max(kept, default=0))
    assert sizes == [6 * 4 * 64, 0]


def test_in_parts_norms_count_each_part_once_and_dropout_is_the_same_twice() -> None:
    image, label = batch_of_six()
    network = small_network(dropout=0.5)
    expected = small_network(dropout=0.5)
    torch.manual_seed(2)
    for part in image.chunk(3):
        expected(part)
    found = gradients(network, TrainingForward(parts=3), image, label)
    assert torch.equal(network[1].running_mean, expected[1].running_mean)  # type: ignore[index]
    assert int(network[1].num_batches_tracked) == 3  # type: ignore[index]
    again = small_network(dropout=0.5)
    torch.manual_seed(2)
    logits = torch.cat([again(part) for part in image.chunk(3)])
    make_loss("dice_ce")(logits, label).backward()
    direct = torch.cat([p.grad.flatten() for p in again.parameters() if p.grad is not None])
    torch.testing.assert_close(found, direct, rtol=0, atol=1e-6)


def test_bfloat16_is_computed_in_bfloat16_and_learns() -> None:
    image, label = batch_of_six()
    network = small_network()
    seen: list[torch.dtype] = []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[index]
    exact = gradients(network, TrainingForward(), image, label)
    rough = gradients(network, TrainingForward("bfloat16"), image, label)
    assert seen == [torch.float32, torch.bfloat16]
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.05


def test_precisions() -> None:
    assert [uses_scaler(name, "cpu") for name in ("float32", "bfloat16")] == [False, False]
    assert uses_scaler("float16", "cuda:1")
    for name, device in (("float16", "cpu"), ("half", "cuda")):
        with pytest.raises(NetworkError) as caught:
            uses_scaler(name, device)
        assert caught.value.code == "PRECISION"


def test_a_compiled_training_is_compiled_and_trains_the_same_network() -> None:
    graphs: list[int] = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    weights = []
    for compiled in (False, True):
        network = small_network()
        torch.manual_seed(4)
        batch = {"image": torch.randn(2, 1, 8, 8), "label": torch.ones(2, 2, 8, 8)}
        SupervisedTrainer(
            "cpu", 2, [batch], network, torch.optim.SGD(network.parameters(), 0.1), nn.MSELoss(), decollate=False,
            inferer=TrainingForward(), compile=compiled, compile_kwargs={"backend": backend},
        ).run()  # fmt: skip
        weights.append(network[0].weight.detach())  # type: ignore[index]
    assert graphs
    torch.testing.assert_close(weights[1], weights[0])


# ----------------------------------------------------------------------------------------------------------------------
# Learning rate and progress


def test_the_learning_rate_test_finds_where_a_parabola_falls_steepest_and_breaks(tmp_path: Path) -> None:
    """(w - 1)² under gradient descent: it falls faster the nearer the rate is to ½, and diverges beyond 1."""
    network = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(network.weight, 3.0)
    trainer = trainer_with(network, lambda pred, label: (network.weight - 1).square().sum(), [], 1)
    before = trainer.optimizer.state_dict()
    found = find_learning_rate(trainer, tmp_path, 1e-4, 10.0, 60)
    assert 0.02 < found < 0.5
    assert float(network.weight.detach()) == 3.0
    assert trainer.optimizer.state_dict() == before
    assert (tmp_path / "learning_rate.png").stat().st_size > 5000


def test_the_terminal_tells_what_is_trained_and_how_long_it_takes() -> None:
    network = nn.Conv2d(1, 1, 1)
    facts = training_facts(network, range(90), range(4), range(2), range(11), 3, "cpu")
    assert facts["network"] == "Conv2d, 0.00 million parameters, on cpu"
    assert facts["training"] == "4 cases, 90 slices"
    progress = RichProgress(facts=facts)
    told = io.StringIO()
    progress.console = progress.progress.live.console = Console(file=told, width=120)
    trainer_with(network, lambda pred, label: pred.mean(), [progress], epochs=3).run()
    assert "4 cases, 90 slices" in told.getvalue()
    assert told.getvalue().count("about 1 minute to go") == 1
    assert not progress.progress.live.is_started


def test_progress_of_a_resumed_training_begins_where_it_is() -> None:
    progress = RichProgress()
    trainer = trainer_with(nn.Conv2d(1, 1, 1), lambda pred, label: pred.mean(), [progress], epochs=3)
    done: list[float] = []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: done.append(progress.progress.tasks[0].completed))
    trainer.state.iteration, trainer.state.epoch = 4, 2
    trainer.run()
    assert done == [4]
    assert progress.progress.tasks[0].completed == 6
