"""Received files are decoded in a child process of limited memory: a file made to exhaust it ends the child alone.

The child is asked and answers in lines of JSON. It is begun when it is first needed, and anew after it has died.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

ATTEMPTS = 2
"""A child may have been ended for reasons of the machine; one that dies again dies of what it reads."""


class LimitedChild:
    """Asks the module of the class, which runs :func:`answer_questions`, in a child process.

    Args:
        memory_bytes: of address space that the child may take.
        seconds: for one answer.
    """

    def __init__(self, memory_bytes: int, seconds: float = 600) -> None:
        module = type(self).__module__
        self._command = [sys.executable, "-P", "-m", module, str(memory_bytes)]  # nothing from the working folder
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, **question: Any) -> tuple[Any] | None:
        """The answer, in a tuple of its own; ``None`` where the question ends the child or takes too long, twice."""
        line = json.dumps(question).encode() + b"\n"
        with self._lock:
            for _ in range(ATTEMPTS):
                if (answer := self._answer(line)) is not None:
                    return (json.loads(answer),)
                self._end()
        return None

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _answer(self, question: bytes) -> bytes | None:
        child = self._child or self._begin()
        if child.stdin is None or child.stdout is None:
            return None
        try:
            child.stdin.write(question)
            child.stdin.flush()
        except OSError:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            if not selector.select(self._seconds):
                return None
        answer = child.stdout.readline()
        return answer if answer.endswith(b"\n") else None

    def _begin(self) -> subprocess.Popen[bytes]:
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL  # what libraries print may quote what was received
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # each thread takes address space
        self._child = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment)  # noqa: S603
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def answer_questions(memory_bytes: int, answer: Callable[..., Any]) -> None:
    """The child: gives each question to ``answer`` by keywords, until its input ends.

    Args:
        memory_bytes: of address space that this process may take from now on.
        answer: gives what JSON can say.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "w", encoding="ascii") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        for line in sys.stdin:
            answers.write(json.dumps(answer(**json.loads(line))) + "\n")
            answers.flush()
