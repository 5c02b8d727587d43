"""The storage SCP: an instance is acknowledged when its file, its folder and its row are on disk, and not before.

A thread serves each connection; datasets go to disk as they come and are never held in memory. What a peer may cost us
is bounded by the site's ``limits``.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections import Counter

from sqlalchemy import Engine

from accunet_monai.errors import PacsError
from accunet_monai.pacs.acceptor import BUSY, LIMIT, Acceptor, RejectedError
from accunet_monai.pacs.association import Association
from accunet_monai.pacs.logs import event
from accunet_monai.pacs.pseudonyms import Pseudonyms
from accunet_monai.pacs.registrar import Registrar
from accunet_monai.pacs.settings import Site, Tls
from accunet_monai.pacs.storage import Storage


class Receiver:
    """Listens for a site's peers until it is stopped.

    Args:
        site: its settings.
        engine: its database.
        storage: its storage, prepared.
    """

    def __init__(self, site: Site, engine: Engine, storage: Storage) -> None:
        self.site, self.engine, self.storage = site, engine, storage
        self.name = f"{socket.gethostname()}:{site.port}:{site.ae_title}"
        self.acceptor = Acceptor(site)
        self.counts: Counter[str] = Counter()
        self.stopping = threading.Event()
        self._tls = server_tls(site.tls) if site.tls else None
        self._open: dict[str, Association] = {}
        self._lock = threading.Lock()
        self._listener = _listen(site.bind, site.port)
        self._listener.settimeout(0.2)
        self.port: int = self._listener.getsockname()[1]
        storage.clear_incoming(self.name)
        self.registrar = Registrar(engine, Pseudonyms(site.key_file), self.name)
        self._thread = threading.Thread(target=self._accept, name="listener", daemon=True)

    def start(self) -> None:
        """Accept connections, in a thread."""
        self._thread.start()
        event("receiver_started", port=self.port)

    def stop(self, seconds: float = 30) -> None:
        """Take no more; instances that are on their way may arrive for so long."""
        self.stopping.set()
        self._listener.close()
        self._thread.join()
        with self._lock:
            current = list(self._open.values())
        for association in current:
            association.stop()
        deadline = time.monotonic() + seconds
        for association in current:
            association.thread.join(max(deadline - time.monotonic(), 0))
            association.wire.close()
            association.thread.join(5)
        event("receiver_stopped", **dict(self.counts))

    @property
    def open_associations(self) -> int:
        """How many connections there are."""
        return len(self._open)

    def admit(self, association: Association, title: str) -> None:
        """Hold an association against the limits.

        Raises:
            RejectedError: ``ASSOCIATIONS_FULL``, or ``STOPPING``.
        """
        limits = self.site.limits
        with self._lock:
            titles = [other.title for other in self._open.values() if other.title]
            if len(titles) >= limits.max_associations or titles.count(title) >= limits.max_associations_per_peer:
                raise RejectedError("ASSOCIATIONS_FULL", "there are as many associations as are allowed.", LIMIT)
            if self.stopping.is_set():
                raise RejectedError("STOPPING", "the receiver is about to stop.", BUSY)
            association.title = title

    def count(self, what: str) -> None:
        """One more of what metrics show: a code, or an outcome."""
        with self._lock:
            self.counts[what] += 1

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:  # closed, or no more descriptors for now
                self.stopping.wait(0.1)
                continue
            try:
                self._begin(connection, str(address[0]))
            except Exception as error:  # e.g. no more threads: this one is not served, the next may be
                self.count("INTERNAL")
                event("connection_failed", logging.ERROR, code="INTERNAL", exception=type(error).__name__)
                connection.close()

    def _begin(self, connection: socket.socket, address: str) -> None:
        if not self.acceptor.peers.knows(address):
            self.count("ADDRESS_UNKNOWN")
            event("connection_refused", logging.WARNING, code="ADDRESS_UNKNOWN", address=address)
            connection.close()
            return
        if len(self._open) >= 2 * self.site.limits.max_associations:
            self.count("CONNECTIONS_FULL")
            connection.close()
            return
        association = Association(self, connection, address, self._tls)
        with self._lock:
            self._open[association.id] = association
        try:
            association.thread.start()
        except RuntimeError:
            self.ended(association)
            raise

    def ended(self, association: Association) -> None:
        """Forget a connection."""
        with self._lock:
            self._open.pop(association.id, None)


def server_tls(tls: Tls) -> ssl.SSLContext:
    """Mutual TLS of version 1.2 or newer: who calls shows a certificate of the site's authority.

    Raises:
        PacsError: ``TLS_FILES``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.ca)
    except OSError as error:  # SSLError is one
        message = f"certificate, key or authority cannot be used ({error.strerror or error})."
        raise PacsError("TLS_FILES", message, path=tls.certificate) from error
    return context


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=256, reuse_port=False)
    except OSError as error:
        message = f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)})."
        raise PacsError("PORT_TAKEN", message, hint="Another process may listen there; check bind and port.") from error
    return listener
