"""Three stages at once: they overlap, little waits between them, failures stay with their item, nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from accunet_monai.batch import overlapped
from accunet_monai.errors import AccunetError, BundleError

WAIT = 20.0
"""Seconds after which a test gives up on another thread."""


def waited(event: threading.Event) -> None:
    assert event.wait(WAIT), "the stages do not overlap"


def same(item: int) -> int:
    return item


def test_results_come_in_order_and_failures_stay_with_their_item() -> None:
    def odd(item: int) -> int:
        if item % 2 == 0:
            raise ValueError(item)
        return item

    def small(item: int) -> int:
        if item > 4:
            raise KeyError(item)
        return 10 * item

    found = list(overlapped(range(7), same, odd, small))
    assert [item for item, _ in found] == list(range(7))
    assert [type(outcome) for _, outcome in found[::2]] == [ValueError] * 4
    assert [outcome if isinstance(outcome, int) else type(outcome) for _, outcome in found[1::2]] == [10, 30, KeyError]
    assert list(overlapped([], same, same, same)) == []


def test_while_one_is_computed_the_next_is_read_and_the_last_is_written() -> None:
    reading, writing = ({item: threading.Event() for item in range(5)} for _ in range(2))
    computing = {item: threading.Event() for item in range(5)}

    def read(item: int) -> int:
        reading[item].set()
        return item

    def compute(item: int) -> int:
        computing[item].set()
        if item < 4:
            waited(reading[item + 1])
        if item > 0:
            waited(writing[item - 1])
        return item

    def write(item: int) -> int:
        writing[item].set()
        if item < 4:
            waited(computing[item + 1])
        return item

    assert list(overlapped(range(5), read, compute, write)) == [(item, item) for item in range(5)]


@pytest.mark.parametrize("slow", ["read", "compute", "write"])
def test_few_items_are_on_their_way_whichever_stage_is_slow(slow: str) -> None:
    lock, started, finished, most = threading.Lock(), [0], [0], [0]

    def stage(name: str) -> Callable[[int], int]:
        def run(item: int) -> int:
            with lock:
                started[0] += name == "read"
                most[0] = max(most[0], started[0] - finished[0])
            time.sleep(0.02 if name == slow else 0)
            with lock:
                finished[0] += name == "write"
            return item

        return run

    assert len(list(overlapped(range(20), stage("read"), stage("compute"), stage("write")))) == 20
    assert most[0] <= 4  # one read, one computed, one written, one being begun


@pytest.mark.parametrize("broken", ["read", "compute", "write"])
@pytest.mark.parametrize("fatal", [SystemExit, GeneratorExit])
@pytest.mark.timeout(60)
def test_a_stage_that_ends_its_thread_ends_the_run_with_an_error(broken: str, fatal: type[BaseException]) -> None:
    def stage(name: str) -> Callable[[int], int]:
        def run(item: int) -> int:
            if name == broken and item == 2:
                raise fatal
            return item

        return run

    with pytest.raises(BundleError) as caught:
        list(overlapped(range(100), stage("read"), stage("compute"), stage("write")))
    assert caught.value.code == "PIPELINE_STOPPED"
    assert fatal.__name__ in str(caught.value)
    assert isinstance(caught.value, AccunetError)


def test_a_caller_who_stops_early_leaves_no_thread_and_no_item_begun() -> None:
    read: list[int] = []
    before = threading.active_count()
    for item, _ in overlapped(range(1000), lambda item: read.append(item) or item, same, same):
        if item == 3:
            break
    deadline = time.monotonic() + WAIT
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert len(read) < 10


def test_an_interrupt_of_the_user_gets_through() -> None:
    def interrupted(item: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(range(3), same, interrupted, same))
