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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from accunet_monai.pacs.rules import Decision, decide_all
from accunet_monai.pacs.settings import BundleRule

ATTEMPTS = 2
"""A child may have been ended for reasons of the machine; one that dies again dies of what it reads."""


class Judge:
    """Judges series in a child process.

    Args:
        memory_bytes: of address space that the child may take.
        seconds: for one series.
    """

    def __init__(self, memory_bytes: int, seconds: float = 600) -> None:
        self._memory, self._seconds = memory_bytes, seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, rules: Sequence[BundleRule], folder: Path) -> list[Decision]:
        """As :func:`~accunet_monai.pacs.rules.decide_all`; refused as ``JUDGE_DIED`` where reading ends the child."""
        given = [rule.model_dump(mode="json", by_alias=True, exclude_unset=True) for rule in rules]
        question = json.dumps({"rules": given, "folder": str(folder)}).encode() + b"\n"
        with self._lock:
            for _ in range(ATTEMPTS):
                if (answer := self._ask(question)) is not None:
                    return [Decision(**decision) for decision in json.loads(answer)]
                self._end()
        return [Decision(rule.name, "refused", "JUDGE_DIED", {}) for rule in rules]

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _ask(self, question: bytes) -> bytes | None:
        """The answer; ``None`` from a child that died or takes too long."""
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
        command = [sys.executable, "-m", "accunet_monai.pacs.judging", str(self._memory)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL  # what libraries print may quote what was received
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # each thread takes address space
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment)  # noqa: S603
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def main(memory_bytes: int) -> None:
    """The child: answers questions until its input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "w", encoding="ascii") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        for line in sys.stdin:
            question = json.loads(line)
            rules = [BundleRule.model_validate(rule) for rule in question["rules"]]
            decisions = [asdict(decision) for decision in decide_all(rules, Path(question["folder"]))]
            answers.write(json.dumps(decisions) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
