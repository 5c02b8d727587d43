"""A killed training goes on and ends with the very bits of one that was left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from accunet_monai.errors import DatasetError, NetworkError
from accunet_monai.training import Stopped, check_output_dir, run_training
from accunet_monai.training.resume import is_finished, state_path
from accunet_monai.training.state_file import read_state, write_state
from tests.training.small import EPOCHS, ITERATIONS, KillAt, Killed, digest, small_training


@pytest.fixture(autouse=True, scope="module")
def quick_disk() -> Iterator[None]:
    """Nothing here cuts the power: a state need not reach the disk before the test goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights of the training that nobody interrupts."""
    folder = tmp_path_factory.mktemp("alone")
    trainer = small_training(folder)
    trainer.run()
    assert trainer.state.iteration == ITERATIONS
    return digest(folder)


@pytest.mark.parametrize("interval", [0, 1e9])
@pytest.mark.parametrize("iteration", range(1, ITERATIONS + 1))
@pytest.mark.parametrize("event", [Events.ITERATION_STARTED, IterationEvents.BACKWARD_COMPLETED])
def test_killed_in_any_iteration(
    event: Any, iteration: int, interval: float, alone: dict[str, str], tmp_path: Path
) -> None:
    """With a state after each iteration, and with one after each epoch alone."""
    with pytest.raises(Killed):
        small_training(tmp_path, KillAt(event, iteration), interval=interval).run()
    resumed = small_training(tmp_path, resume=True, interval=interval)
    resumed.run()
    assert digest(tmp_path) == alone
    assert resumed.state.iteration == ITERATIONS
    assert is_finished(tmp_path)


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_killed_before_and_after_a_validation(epoch: int, alone: dict[str, str], tmp_path: Path) -> None:
    for number, event in enumerate((Events.EPOCH_COMPLETED, Events.EPOCH_STARTED)):
        folder = tmp_path / str(number)
        with pytest.raises(Killed):
            small_training(folder, KillAt(event, epoch)).run()
        small_training(folder, resume=True).run()
        assert digest(folder) == alone


@pytest.mark.parametrize("which", [1, 3, 6, 12])
def test_killed_while_it_validates(which: int, alone: dict[str, str], tmp_path: Path) -> None:
    trainer = small_training(tmp_path)
    KillAt(Events.ITERATION_COMPLETED, which).attach(trainer.evaluator)
    with pytest.raises(Killed):
        trainer.run()
    resumed = small_training(tmp_path, resume=True)
    resumed.run()
    assert digest(tmp_path) == alone
    assert resumed.evaluator.state.epoch == EPOCHS


@settings(max_examples=15, deadline=None)
@given(kills=st.lists(st.integers(1, ITERATIONS), max_size=6), interval=st.sampled_from([0, 1e9]))
def test_killed_again_and_again(
    kills: list[int], interval: float, alone: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("often")
    for number in kills:
        try:
            small_training(folder, KillAt(Events.ITERATION_STARTED, number), resume=True, interval=interval).run()
        except Killed:
            continue
        break
    else:
        small_training(folder, resume=True, interval=interval).run()
    assert digest(folder) == alone


class Forgetful:
    """Has no state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def test_what_a_resumed_training_needs_is_in_its_state(alone: dict[str, str], tmp_path: Path) -> None:
    """Each part left out of the state gives other weights: so the tests above would tell."""
    for part in ("optimizer", "schedule", "average", "network"):
        folder = tmp_path / part
        with pytest.raises(Killed):
            small_training(folder, KillAt(Events.ITERATION_STARTED, 7)).run()
        forgetful = small_training(folder, resume=True)
        forgetful.keeper.parts[part] = Forgetful()
        forgetful.run()
        assert digest(folder)["last.safetensors"] != alone["last.safetensors"], part


@pytest.mark.parametrize("asked", ["SIGTERM", "SIGINT", "file"])
@pytest.mark.parametrize("iteration", [2, 4])
def test_asked_to_stop_it_saves_its_state_first(
    iteration: int, asked: str, alone: dict[str, str], tmp_path: Path
) -> None:
    trainer = small_training(tmp_path, interval=1e9)

    @trainer.on(Events.ITERATION_STARTED(once=iteration))
    def ask() -> None:
        if asked == "file":
            (tmp_path / "stop").touch()
        else:
            os.kill(os.getpid(), getattr(signal, asked))

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=asked):
        trainer.run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert trainer.state.iteration == iteration == read_state(state_path(tmp_path))["iteration"]
    small_training(tmp_path, resume=True, interval=1e9).run()
    assert digest(tmp_path) == alone
    assert not (tmp_path / "stop").exists()


def test_asked_to_stop_while_it_validates_it_stops_at_once(alone: dict[str, str], tmp_path: Path) -> None:
    trainer = small_training(tmp_path, interval=1e9)
    trainer.evaluator.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda engine: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(Stopped):
        trainer.run()
    assert (trainer.state.iteration, trainer.evaluator.state.iteration) == (4, 1)
    assert digest(tmp_path) == {}
    small_training(tmp_path, resume=True, interval=1e9).run()
    assert digest(tmp_path) == alone


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    trainer = small_training(tmp_path)

    @trainer.on(Events.ITERATION_STARTED(once=2))
    def ask() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.run()
    assert not isinstance(caught.value, Stopped)
    assert read_state(state_path(tmp_path))["iteration"] == 1


def test_after_a_loss_that_is_no_number_the_last_good_state_is_there(alone: dict[str, str], tmp_path: Path) -> None:
    trainer = small_training(tmp_path)
    good = trainer.loss_function
    trainer.loss_function = lambda pred, label: (
        good(pred, label) * (float("nan") if trainer.state.iteration == 6 else 1)
    )
    with pytest.raises(NetworkError, match="iteration 6"):
        trainer.run()
    small_training(tmp_path, resume=True).run()
    assert digest(tmp_path) == alone


def test_a_gradient_that_is_no_number_does_not_reach_the_weights(tmp_path: Path) -> None:
    trainer = small_training(tmp_path)
    network = trainer.network

    @trainer.on(IterationEvents.LOSS_COMPLETED)
    def poison() -> None:
        if trainer.state.iteration == 3:
            trainer.state.output["loss"].register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(NetworkError) as caught:
        trainer.run()
    assert caught.value.code == "GRADIENT_NOT_FINITE"
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert read_state(state_path(tmp_path))["iteration"] == 2


def test_early_stopping_counts_on_after_a_kill(tmp_path: Path) -> None:
    def training(folder: Path, *handlers: Any, **more: Any) -> Any:
        trainer = small_training(folder, *handlers, patience=2, **more)
        trainer.evaluator.add_event_handler(Events.COMPLETED, lambda e: e.state.metrics.update(val_mean_dice=1.0))
        handlers_of = trainer.evaluator._event_handlers[Events.COMPLETED]
        handlers_of.insert(1, handlers_of.pop())  # known before it is looked at
        trainer.state.max_epochs = 9
        return trainer

    alone = training(tmp_path / "alone")
    alone.run()
    assert alone.state.epoch == 3  # the first validation is the best; two more are not better
    for event in (Events.EPOCH_STARTED, Events.COMPLETED):
        folder = tmp_path / event.name
        with pytest.raises(Killed):
            training(folder, KillAt(event, 3 if event is Events.EPOCH_STARTED else 1)).run()
        resumed = training(folder, resume=True)
        resumed.run()
        assert resumed.state.epoch == 3, event
        assert is_finished(folder)


def test_an_unfinished_training_is_not_written_over(tmp_path: Path) -> None:
    check_output_dir(tmp_path)
    with pytest.raises(Killed):
        small_training(tmp_path, KillAt(Events.ITERATION_STARTED, 3)).run()
    with pytest.raises(DatasetError, match=r"--resume.*--overwrite") as caught:
        check_output_dir(tmp_path)
    assert caught.value.code == "RUN_UNFINISHED"
    check_output_dir(tmp_path, resume=True)
    small_training(tmp_path, resume=True).run()
    trainer = small_training(tmp_path, resume=True)
    before = digest(tmp_path)
    run_training(trainer, tmp_path, resume=True)
    assert trainer.state.iteration == 0
    with pytest.raises(DatasetError, match="RUN_FINISHED"):
        trainer.run()
    assert digest(tmp_path) == before
    with pytest.raises(Killed):
        small_training(tmp_path, KillAt(Events.ITERATION_STARTED, 3)).run()
    check_output_dir(tmp_path, overwrite=True)
    assert not state_path(tmp_path).exists()


def test_what_is_begun_anew_is_finished_no_longer(tmp_path: Path) -> None:
    small_training(tmp_path).run()
    check_output_dir(tmp_path, resume=True)
    assert is_finished(tmp_path)
    check_output_dir(tmp_path)
    assert not is_finished(tmp_path)  # killed here, --resume begins
    with pytest.raises(Killed):
        small_training(tmp_path, KillAt(Events.ITERATION_STARTED, 1)).run()
    trainer = small_training(tmp_path, resume=True)
    run_training(trainer, tmp_path, resume=True)
    assert trainer.state.iteration == ITERATIONS


def test_a_finished_training_of_other_settings_is_not_taken_for_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def resumed(epochs: int, *cases: str) -> None:
        trainer = small_training(tmp_path, resume=True, same={"cases": [*cases]})
        trainer.keeper.same["config"] = {"max_epochs": epochs, "device": str(cases)}
        run_training(trainer, tmp_path, resume=True)

    resumed(26, "a", "b")
    resumed(26, "a", "b")
    assert capsys.readouterr().out.count("finished already") == 1
    for epochs, cases, told in ((60, "ab", "settings: max_epochs"), (26, "ac", "settings: cases")):
        with pytest.raises(DatasetError, match=told) as caught:
            resumed(epochs, *cases)
        assert caught.value.code == "RESUME_CHANGED"
    write_state({"finished": True}, state_path(tmp_path))  # as versions wrote it that kept no settings
    resumed(60, "a", "c")
    assert "finished already" in capsys.readouterr().out


def test_another_training_does_not_go_on_with_this_ones_state(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        small_training(tmp_path, KillAt(Events.ITERATION_STARTED, 3), same={"cases": ["a", "b"]}).run()
    with pytest.raises(DatasetError, match="other settings: cases") as caught:
        small_training(tmp_path, resume=True, same={"cases": ["a", "c"]}).run()
    assert caught.value.code == "RESUME_CHANGED"


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "numbers": {0: torch.arange(3), 7: [1.5, float("inf"), None, True, "x"]},
        "tensors": [torch.tensor(2.0, dtype=torch.float64), torch.eye(2, dtype=torch.bool)],
        "tenth": 0.1,
    }
    shared = torch.ones(3)
    found = read_state(write_state({**state, "one": shared, "two": shared}, tmp_path / "state.safetensors"))
    assert found["numbers"][7] == state["numbers"][7]  # type: ignore[index]
    assert found["tenth"] == 0.1
    assert torch.equal(found["numbers"][0], torch.arange(3))
    assert found["tensors"][0].dtype == torch.float64
    assert torch.equal(found["tensors"][1], torch.eye(2, dtype=torch.bool))
    assert torch.equal(found["two"], shared)
    with pytest.raises(TypeError, match=r"state\.bad is a set"):
        write_state({"bad": {1}}, tmp_path / "state.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(DatasetError) as caught:
        read_state(tmp_path / "broken.safetensors")
    assert caught.value.code == "STATE_UNREADABLE"
