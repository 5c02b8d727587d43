"""What takes in and closes series, in one process: receiver, closing and the site's timed pulls."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from types import TracebackType

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from accunet_monai.errors import AccunetError
from accunet_monai.pacs.completeness import Count, close_complete
from accunet_monai.pacs.database import open_database
from accunet_monai.pacs.judging import Judge
from accunet_monai.pacs.logs import event
from accunet_monai.pacs.pseudonyms import Pseudonyms
from accunet_monai.pacs.registrar import Registrar
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.storage import Storage

CLOSE_EVERY_SECONDS = 1.0
REFRESH_EVERY_SECONDS = 60.0


class OpenSite:
    """A site's database and storage, opened; a context manager.

    Args:
        site: its settings.

    Raises:
        PacsError: what :func:`open_database`, :class:`Pseudonyms` and :meth:`Storage.prepare` raise.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.pseudonyms = Pseudonyms(site.key_file)
        if site.database is None:
            site.storage.mkdir(parents=True, exist_ok=True)
        self.engine: Engine = open_database(site.database_url)
        self.storage = Storage(site.storage, site.limits)
        self.storage.prepare(self.engine)

    def registrar(self, name: str) -> Registrar:
        """A registrar for this process, under a name that no other one has."""
        return Registrar(self.engine, self.pseudonyms, f"{name}:{socket.gethostname()}:{os.getpid()}")

    def __enter__(self) -> OpenSite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self.engine.dispose()


class Inbox:
    """Receives and closes series until it is stopped.

    Args:
        opened: the site's database and storage.
    """

    def __init__(self, opened: OpenSite) -> None:
        from accunet_monai.pacs.receive import Receiver  # pynetdicom, which closing alone can do without

        self.opened = opened
        self.receiver = Receiver(opened.site, opened.engine, opened.storage)
        self._judge = Judge(opened.site.limits.decode_memory_bytes)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._close_on, name="closing", daemon=True)]
        if opened.site.pulls:
            self._threads.append(threading.Thread(target=self._pull_on, name="pulling", daemon=True))

    def start(self) -> None:
        """Begin."""
        self.receiver.start()
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = 30) -> None:
        """Take nothing new; what is on its way may arrive for so long."""
        self._stop.set()
        self.receiver.stop(seconds)
        self._threads[0].join()
        self._judge.close()

    def _close_on(self) -> None:
        refreshed = time.monotonic()
        count = remote_count(self.opened.site)
        while not self._stop.wait(CLOSE_EVERY_SECONDS):
            try:
                close_complete(self.opened.site, self.opened.engine, self.opened.storage, self._judge, count)
                if time.monotonic() - refreshed > REFRESH_EVERY_SECONDS:
                    self.opened.storage.refresh(self.opened.engine)
                    refreshed = time.monotonic()
            except AccunetError as error:
                event("closing_failed", logging.ERROR, code=error.code)
            except SQLAlchemyError:
                event("closing_failed", logging.ERROR, code="PACS_DATABASE")
            except Exception as error:  # the thread stays
                event("closing_failed", logging.ERROR, code="INTERNAL", exception=type(error).__name__)

    def _pull_on(self) -> None:
        from accunet_monai.pacs.pull import Puller

        due = {pull.name: time.monotonic() for pull in self.opened.site.pulls}
        registrar = Registrar(self.opened.engine, self.opened.pseudonyms, f"pull:{self.receiver.name}")
        while not self._stop.wait(1):
            for pull in self.opened.site.pulls:
                if time.monotonic() < due[pull.name]:
                    continue
                due[pull.name] = time.monotonic() + 60 * pull.every_minutes
                try:
                    counts = Puller(self.opened.site, self.opened.engine, self.opened.storage, registrar, pull).run()
                    event("pulled", logging.INFO, pull=pull.name, **dict(counts))
                except AccunetError as error:
                    event("pull_failed", logging.ERROR, pull=pull.name, code=error.code)
                except SQLAlchemyError:
                    event("pull_failed", logging.ERROR, pull=pull.name, code="PACS_DATABASE")
                except Exception as error:  # the other pulls go on
                    facts = {"pull": pull.name, "exception": type(error).__name__}
                    event("pull_failed", logging.ERROR, code="INTERNAL", **facts)


def remote_count(site: Site) -> Count | None:
    """How the PACS of ``completeness.count_from`` is asked for a series' number of instances."""
    if site.completeness.count_from is None:
        return None
    from accunet_monai.pacs.query import count_remote

    pacs = site.pacs_named(site.completeness.count_from)
    return lambda study, series: count_remote(site, pacs, study, series)
