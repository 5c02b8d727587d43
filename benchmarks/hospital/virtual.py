"""Virtual time: code that sleeps runs in greenlets, and the clock jumps to whatever comes next."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from greenlet import getcurrent, greenlet

Act = Callable[[], object]


@dataclass(eq=False)
class Life:
    """A process: what sleeps in it never wakes after its death, and wakes late when it was frozen meanwhile."""

    alive: bool = True
    frozen_until: float = 0.0


class Time:
    """The clock and what is to come. Its :meth:`time` and :meth:`sleep` stand in for those of the module ``time``."""

    def __init__(self, start: float) -> None:
        self.now = start
        self._hub = getcurrent()
        self._coming: list[tuple[float, int, Act]] = []
        self._order = itertools.count()
        self._lives: dict[greenlet, Life] = {}

    def time(self) -> float:
        """Now."""
        return self.now

    def at(self, when: float, act: Act) -> None:
        """Do something then, outside every process; what it does takes no time."""
        heapq.heappush(self._coming, (max(when, self.now), next(self._order), act))

    def every(self, seconds: float, act: Act) -> None:
        """Do something again and again."""

        def again() -> None:
            act()
            self.at(self.now + seconds, again)

        self.at(self.now, again)

    def begin(self, life: Life, act: Act) -> None:
        """Run code that may sleep, in a process."""
        one = greenlet(act)
        self._lives[one] = life
        self._wake_at(self.now, one)

    def sleep(self, seconds: float) -> None:
        """Let others run for so long."""
        self._wake_at(self.now + seconds, getcurrent())
        self._hub.switch()

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Let time pass."""
        while self._coming and goes_on():
            self.now, _, act = heapq.heappop(self._coming)
            act()

    @contextmanager
    def turn(self, line: deque[greenlet]) -> Iterator[None]:
        """Among those of one process who stand in line, one at a time, in the order of their coming."""
        line.append(getcurrent())
        if len(line) > 1:
            self._hub.switch()
        yield
        line.popleft()
        if line:
            self._wake_at(self.now, line[0])

    def _wake_at(self, when: float, one: greenlet) -> None:
        self.at(when, lambda: self._wake(one))

    def _wake(self, one: greenlet) -> None:
        life = self._lives[one]
        if life.frozen_until > self.now:
            self._wake_at(life.frozen_until, one)
        elif life.alive:
            one.switch()
        if one.dead or not life.alive:
            del self._lives[one]
