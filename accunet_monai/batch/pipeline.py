"""Three stages over many items, each in its own thread, with few items in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from accunet_monai.errors import BundleError

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Computed = TypeVar("Computed")
Result = TypeVar("Result")

AHEAD = 1
"""Items that are read before, and written after, the one that is computed. One keeps all three stages busy; each more
is one more volume in memory."""


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Loaded],
    compute: Callable[[Loaded], Computed],
    write: Callable[[Computed], Result],
    *,
    ahead: int = AHEAD,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Read, compute and write items in their order, while the item before is computed and the one before that written.

    ``compute`` runs in the calling thread, ``read`` and ``write`` in one other thread each. At most ``ahead`` items are
    read or being read, one is computed, and ``ahead`` are written or wait for it.

    Args:
        items: what to work on.
        read: the first stage.
        compute: the second.
        write: the third.
        ahead: from 1.

    Yields:
        (item, what ``write`` gave, or the exception that a stage raised), in order. An item that fails stops no other.

    Raises:
        BundleError: ``PIPELINE_STOPPED`` when a stage ends with more than an ``Exception`` (``SystemExit``): the run
            ends, too, since nobody knows what else is broken.

    Example:
        >>> list(overlapped([1, 0, 2], lambda x: x, lambda x: 6 // x, str))
        [(1, '6'), (0, ZeroDivisionError('integer division or modulo by zero')), (2, '3')]
    """
    waiting = deque[tuple[Item, Future[Loaded]]]()
    writing = deque[tuple[Item, "Future[Result] | Exception"]]()
    with ThreadPoolExecutor(1, "reading") as reader, ThreadPoolExecutor(1, "writing") as writer:
        try:
            for item, future in _read_ahead(items, lambda one: reader.submit(read, one), waiting, ahead):
                loaded = _caught(future.result)
                computed = loaded if isinstance(loaded, Exception) else _caught(compute, loaded)
                while len(writing) >= ahead:
                    yield _finished(*writing.popleft())
                done = computed if isinstance(computed, Exception) else writer.submit(write, computed)
                writing.append((item, done))
                del future, loaded, computed, done  # they hold a volume each
            while writing:
                yield _finished(*writing.popleft())
        finally:  # also when the caller stops early: what has not begun does not begin
            reader.shutdown(wait=False, cancel_futures=True)
            writer.shutdown(wait=False, cancel_futures=True)


def _read_ahead(
    items: Iterable[Item],
    submit: Callable[[Item], Future[Loaded]],
    waiting: deque[tuple[Item, Future[Loaded]]],
    ahead: int,
) -> Iterator[tuple[Item, Future[Loaded]]]:
    """Each item with its reading, which has begun ``ahead`` items earlier."""
    for item in items:
        if len(waiting) > ahead:
            yield waiting.popleft()
        waiting.append((item, submit(item)))
    while waiting:
        yield waiting.popleft()


def _finished(item: Item, done: Future[Any] | Exception) -> tuple[Item, Any]:
    return item, done if isinstance(done, Exception) else _caught(done.result)


def _caught(function: Callable[..., Any], *args: Any) -> Any:
    """What a function gives or the exception it raises. A future's result always comes, whatever its work raised."""
    try:
        return function(*args)
    except Exception as error:
        return error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BundleError("PIPELINE_STOPPED", f"a stage ended with {type(error).__name__} ({error}).") from error
