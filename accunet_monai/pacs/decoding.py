"""Pixels are decoded in a child process of limited memory first: what ends a decoder ends the child, and no worker.

What the child could decode the worker decodes again; the same bytes cannot do there what they did not do in the child.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from accunet_monai.errors import AccunetError, PacsError, SeriesError
from accunet_monai.pacs.judging import ATTEMPTS, Judge
from accunet_monai.pacs.rules import NO_GRID
from accunet_monai.volumes import PlaneStack, Volume, read_planes, read_series


class Decoder(Judge):
    """Tries to decode series in a child process; see its base."""

    def check(self, series: Path, planes: bool) -> None:
        """Decode the series in a folder and keep nothing of it.

        Raises:
            PacsError: ``DECODER_DIED`` where reading ends the child, or the code with which reading refuses it.
        """
        question = json.dumps({"series": str(series), "planes": planes}).encode() + b"\n"
        with self._lock:
            for _ in range(ATTEMPTS):
                if (answer := self._ask(question)) is not None:
                    code = json.loads(answer)
                    if code is None:
                        return
                    raise PacsError(code, "the series is refused.")
                self._end()
        raise PacsError("DECODER_DIED", "decoding the series exhausts memory or time, or ends the decoder.")

    def _begin(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "accunet_monai.pacs.decoding", str(self._memory)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL  # what libraries print may quote what was received
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # each thread takes address space
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment)  # noqa: S603
        return self._child


def read_image(series: Path, planes: bool = True) -> Volume | PlaneStack:
    """The series in a folder, as a grid, else as a stack of planes where these are taken."""
    try:
        return read_series(series)
    except SeriesError as error:
        if not planes or error.code not in NO_GRID:
            raise
        return read_planes(series)


def main(memory_bytes: int) -> None:
    """The child: answers questions until its input ends, with a code or null."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "w", encoding="ascii") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        for line in sys.stdin:
            question = json.loads(line)
            answers.write(json.dumps(_code(Path(question["series"]), question["planes"])) + "\n")
            answers.flush()


def _code(series: Path, planes: bool) -> str | None:
    try:
        read_image(series, planes)
    except AccunetError as error:
        return error.code
    except MemoryError:
        return "DECODER_DIED"
    return None


if __name__ == "__main__":
    main(int(sys.argv[1]))
