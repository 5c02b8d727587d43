"""Structured logs, one JSON object a line on standard error, in which no patient and no UID can stand.

What this package has to say goes through :func:`event`, with facts that are ids made here, codes, counts and keyed
pseudonyms. Texts of other libraries are never written, since they may hold anything that came over the network: of
their records only who spoke, where, how urgently, and which type of exception it was. Of an exception that nothing
caught likewise, and the last place in this package that it came by.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any, TextIO

from accunet_monai.errors import AccunetError

LOGGER = "accunet.pacs"

Fact = str | int | float | bool | None

_UID = re.compile(r"\b[0-2](\.\d+){3,}\b")
_FACTS = "accunet_facts"
_PACKAGE = Path(__file__).parents[1]


def event(name: str, level: int = logging.INFO, **facts: Fact) -> None:
    """Log something that happened.

    Args:
        name: a word or two with underscores, e.g. ``job_done``; it never changes once released.
        level: of the ``logging`` module.
        facts: ids made here, codes, counts, pseudonyms.
    """
    logging.getLogger(LOGGER).log(level, name, extra={_FACTS: facts})


def configure_logs(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send all records of this process, those of libraries from WARNING on, to one stream as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(level)
    for name in ("dbos", "pynetdicom"):  # they bring handlers of their own
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    for hooks, name in ((threading, "excepthook"), (sys, "unraisablehook")):
        setattr(hooks, name, lambda what: _uncaught(what.exc_type, what.exc_value, what.exc_traceback))


class JsonLines(logging.Formatter):
    """One JSON object a record: ``time`` (UTC), ``level``, ``event`` and facts, or where a library spoke."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        if record.name == LOGGER:
            facts = getattr(record, _FACTS, {})
            line |= {"event": record.msg, **{key: _without_uids(value) for key, value in facts.items()}}
        else:
            line |= {"library": record.name, "where": f"{record.module}:{record.lineno}"}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=True)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Say that something was raised and where; its text and its traceback may hold anything."""
    if not issubclass(kind, SystemExit):
        frames = [(Path(frame.f_code.co_filename), line) for frame, line in walk_tb(trace)]
        ours = [f"{file.stem}:{line}" for file, line in frames if file.is_relative_to(_PACKAGE)]
        code = error.code if isinstance(error, AccunetError) else None
        event("uncaught", logging.ERROR, exception=kind.__name__, code=code, where=ours[-1] if ours else None)


def _without_uids(value: Fact) -> Fact:
    """A safety net: no UID is meant to get here."""
    return _UID.sub("UID", value) if isinstance(value, str) else value
