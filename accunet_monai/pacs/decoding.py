"""Pixels are decoded in a child process of limited memory first: what ends a decoder ends the child, and no worker.

What the child could decode the worker decodes again; the same bytes cannot do there what they did not do in the child.
"""

from __future__ import annotations

import sys
from pathlib import Path

from accunet_monai.errors import AccunetError, PacsError, SeriesError
from accunet_monai.pacs.children import LimitedChild, answer_questions
from accunet_monai.pacs.rules import NO_GRID
from accunet_monai.volumes import PlaneStack, Volume, read_planes, read_series


class Decoder(LimitedChild):
    """Tries to decode series in a child process."""

    def check(self, series: Path, planes: bool) -> None:
        """Decode the series in a folder and keep nothing of it.

        Raises:
            PacsError: ``DECODER_DIED`` where reading ends the child, or the code with which reading refuses it.
        """
        answer = self.ask(series=str(series), planes=planes)
        if answer is None:
            raise PacsError("DECODER_DIED", "decoding the series exhausts memory or time, or ends the decoder.")
        if answer[0] is not None:
            raise PacsError(answer[0], "the series is refused.")


def read_image(series: Path, planes: bool = True) -> Volume | PlaneStack:
    """The series in a folder, as a grid, else as a stack of planes where these are taken."""
    try:
        return read_series(series)
    except SeriesError as error:
        if not planes or error.code not in NO_GRID:
            raise
        return read_planes(series)


def _code(series: str, planes: bool) -> str | None:
    try:
        read_image(Path(series), planes)
    except AccunetError as error:
        return error.code
    except MemoryError:
        return "DECODER_DIED"
    return None


if __name__ == "__main__":
    answer_questions(int(sys.argv[1]), _code)
