"""One association of the storage SCP, from its first byte to its last: C-ECHO, C-STORE, and a PACS's commitments.

What is refused for its content is read to its end, so that the peer hears why; what breaks the protocol or a limit ends
the association.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]
from sqlalchemy.exc import SQLAlchemyError

from accunet_monai.errors import PacsError
from accunet_monai.pacs.acceptor import MAX_ASSOCIATE_BYTES, Negotiated, RejectedError
from accunet_monai.pacs.commitment import MAX_REPORT_BYTES, read_report, take_report
from accunet_monai.pacs.logs import event
from accunet_monai.pacs.registrar import Arrival
from accunet_monai.pacs.storage import Incoming
from accunet_monai.pacs.wire import MAX_COMMAND_BYTES, Pdu, Wire, decode_command, encode_response, fragments

if TYPE_CHECKING:
    from accunet_monai.pacs.receive import Receiver

SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
"""Statuses of C-STORE (PS3.4 table B.2-1)."""

_ECHO_RQ, _STORE_RQ, _REPORT_RQ, _CANCEL_RQ = 0x0030, 0x0001, 0x0100, 0x0FFF
_PROCESSING_FAILURE, _NO_SUCH_INSTANCE = 0x0110, 0x0112
_NO_DATASET = 0x0101
_STATUS = {"INSTANCE_MISMATCH": MISMATCH, "INSTANCE_UID": CANNOT_UNDERSTAND, "INSTANCE_UNREADABLE": CANNOT_UNDERSTAND}
_ENDS_ASSOCIATION = frozenset({"INSTANCE_TOO_LARGE", "INSTANCE_INFLATED"})
_INVALID_PARAMETER, _UNEXPECTED = 6, 2  # reasons of an A-ABORT


@dataclass
class _Message:
    """A DIMSE message that is being received."""

    context: int
    command: bytearray = field(default_factory=bytearray)
    elements: dict[int, bytes] | None = None
    incoming: Incoming | None = None
    report: bytearray | None = None
    refused: PacsError | OSError | None = None


class Association:
    """One connection, from its first byte to its last, in one thread."""

    def __init__(self, receiver: Receiver, connection: socket.socket, address: str, tls: ssl.SSLContext | None) -> None:
        self.id = uuid.uuid4().hex
        self.title = ""
        self._receiver, self._address, self._tls = receiver, address, tls
        self._limits = receiver.site.limits
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wire = Wire(connection, self._limits.idle_seconds)
        self._connection = connection
        self._message: _Message | None = None
        self._terms: Negotiated | None = None
        self._brought = False
        self.thread = threading.Thread(target=self._run, name=f"association-{self.id[:8]}", daemon=True)

    def stop(self) -> None:
        """End it now when nothing is on its way; otherwise it ends after that."""
        if self._message is None:
            self.wire.stop_reading()

    def _run(self) -> None:
        code = "RELEASED"
        try:
            self._serve()
        except RejectedError as error:
            code = error.code
            self._quietly_send(error.answer)
        except PacsError as error:
            code = error.code
            if code != "PEER_GONE" or self._receiver.stopping.is_set():
                self.wire.abort(_INVALID_PARAMETER if code == "PDU_TOO_LARGE" else _UNEXPECTED)
        except Exception:  # of one connection; the others go on. The text might quote what was received
            code = "INTERNAL"
            event("association_failed", logging.ERROR, code=code)
            self.wire.abort()
        finally:
            self._discard()
            self.wire.close()
            self._receiver.ended(self)
            self._close_row()
            self._receiver.count(code)
            event("association_ended", code=code, peer=self.title, address=self._address)

    def _close_row(self) -> None:
        """What it brought waits for it no longer; without a database that takes ``association_wait_seconds``."""
        try:
            if self._brought:
                self._receiver.registrar.closed(self.id)
        except SQLAlchemyError:
            event("association_not_closed", logging.ERROR, code="PACS_DATABASE", peer=self.title)

    def _serve(self) -> None:
        deadline = time.monotonic() + self._limits.association_seconds
        if self._tls is not None:
            self._secure(self._tls)
        kind, content = self.wire.read(MAX_ASSOCIATE_BYTES, deadline)
        if kind != Pdu.ASSOCIATE_RQ:
            raise PacsError("PDU_UNEXPECTED", "something other than an A-ASSOCIATE-RQ came first.")
        self._terms = self._receiver.acceptor.decide(bytes(content), self._address)
        self._receiver.admit(self, self._terms.title)
        self.wire.send(self._terms.answer)
        self._receiver.count("ACCEPTED")
        while True:
            kind, content = self.wire.read(self._limits.max_pdu)
            if kind == Pdu.DATA:
                for context, of_command, last, data in fragments(content):
                    self._take(context, of_command, last, data)
            elif kind == Pdu.RELEASE_RQ and self._message is None:
                self.wire.release()
                return
            elif kind == Pdu.ABORT:
                raise PacsError("PEER_ABORTED", "the peer aborted.")
            else:
                raise PacsError("PDU_UNEXPECTED", f"a PDU of type {kind} in the wrong place.")

    def _secure(self, tls: ssl.SSLContext) -> None:
        self._connection.settimeout(self._limits.association_seconds)
        try:
            secured = tls.wrap_socket(self._connection, server_side=True)
        except (OSError, ValueError) as error:
            raise PacsError("TLS_FAILED", "the peer has no certificate that is trusted here.") from error
        self.wire = Wire(secured, self._limits.idle_seconds)

    def _take(self, context: int, of_command: bool, last: bool, data: memoryview) -> None:
        """One fragment of a message."""
        if self._message is None:
            self._message = _Message(context)
        message = self._message
        if context != message.context or of_command != (message.elements is None):
            raise PacsError("PDU_UNEXPECTED", "a fragment that belongs to no message.")
        if of_command:
            message.command += data
            if len(message.command) > MAX_COMMAND_BYTES:
                raise PacsError("PDU_TOO_LARGE", "a command set without an end.")
            if last:
                message.elements = decode_command(bytes(message.command))
                self._begin(message)
            return
        if message.incoming is not None:
            self._write(message, data)
        elif message.report is not None:
            message.report += data
            if len(message.report) > MAX_REPORT_BYTES:
                raise PacsError("PDU_TOO_LARGE", "a report without an end.")
        if last:
            self._end(message)

    def _begin(self, message: _Message) -> None:
        """A command set is complete."""
        elements = message.elements or {}
        command = _number(elements.get(0x0100))
        has_dataset = _number(elements.get(0x0800)) != _NO_DATASET
        sop_class, syntax = (self._terms.contexts if self._terms else {}).get(message.context, ("", ""))
        if not sop_class:
            raise PacsError("CONTEXT_UNKNOWN", "a message on a presentation context that was not accepted.")
        if command == _CANCEL_RQ and not has_dataset:
            self._message = None
        elif command == _ECHO_RQ and not has_dataset:
            self._answer(message, 0x8030, SUCCESS)
        elif command == _STORE_RQ and has_dataset:
            announced, instance = _text(elements.get(0x0002)), _text(elements.get(0x1000))
            if announced != sop_class:
                raise PacsError("CONTEXT_UNKNOWN", "an instance of another SOP class than its context's.")
            try:
                name = self._receiver.name
                message.incoming = self._receiver.storage.open_incoming(name, announced, instance, syntax)
            except (PacsError, OSError) as error:
                message.refused = error
        elif command == _REPORT_RQ and has_dataset and sop_class == StorageCommitmentPushModel:
            message.report = bytearray()
        else:
            raise PacsError("COMMAND_UNKNOWN", "neither C-ECHO nor C-STORE.")

    def _write(self, message: _Message, data: memoryview) -> None:
        """To disk; what is refused is read to its end, so that the peer hears why."""
        if message.incoming is None:
            return
        try:
            message.incoming.write(data)
        except (PacsError, OSError) as error:
            self._discard()
            if isinstance(error, PacsError) and error.code in _ENDS_ASSOCIATION:
                raise
            message.refused, message.incoming = error, None

    def _end(self, message: _Message) -> None:
        """A dataset is complete."""
        if message.report is not None:
            self._answer(message, 0x8100, self._reported(bytes(message.report), message.context))
            return
        status = SUCCESS
        try:
            if message.refused is not None or message.incoming is None:
                raise message.refused or PacsError("INSTANCE_UNREADABLE", "nothing came.")
            outcome = self._keep(message.incoming)
            self._receiver.count(f"instance {outcome}")
            if outcome == "aside":
                event("instance_set_aside", logging.WARNING, code="INSTANCE_CONFLICT", peer=self.title)
        except PacsError as error:
            status = _STATUS.get(error.code, OUT_OF_RESOURCES)
            self._receiver.count(error.code)
            event("instance_refused", logging.WARNING, code=error.code, peer=self.title)
        except Exception:  # disk or database failed: not acknowledged, the peer tries again
            status = OUT_OF_RESOURCES
            self._receiver.count("NOT_DURABLE")
            event("instance_not_kept", logging.ERROR, code="NOT_DURABLE", peer=self.title)
        finally:
            self._discard()
        self._answer(message, 0x8001, status)

    def _reported(self, report: bytes, context: int) -> int:
        """A PACS says whether it keeps what we sent; returns the status for it."""
        syntax = (self._terms.contexts if self._terms else {})[context][1]
        try:
            known = take_report(self._receiver.engine, self.title, read_report(report, syntax))
        except Exception:  # what was received is no report, or the database failed
            self._receiver.count("REPORT_UNREADABLE")
            event("report_refused", logging.WARNING, code="REPORT_UNREADABLE", peer=self.title)
            return _PROCESSING_FAILURE
        self._receiver.count("report" if known else "REPORT_UNKNOWN")
        return SUCCESS if known else _NO_SUCH_INSTANCE

    def _keep(self, incoming: Incoming) -> str:
        arrival = Arrival(incoming.keep(), f"push:{self.title}", association=self.id)
        self._brought = True
        outcome = self._receiver.registrar.register(arrival)
        if outcome == "same":
            self._receiver.storage.release(incoming.size)
        return outcome

    def _answer(self, message: _Message, command: int, status: int) -> None:
        elements = message.elements or {}
        answer: dict[int, bytes | int] = {0x0100: command, 0x0800: _NO_DATASET, 0x0900: status}
        answer[0x0120] = _number(elements.get(0x0110))
        for element in (0x0002, 0x1000):
            if element in elements:
                answer[element] = elements[element].rstrip(b"\0 ")
        if 0x1002 in elements:
            answer[0x1002] = _number(elements[0x1002])
        self._message = None
        self.wire.send(encode_response(message.context, answer))
        if self._receiver.stopping.is_set():
            raise PacsError("STOPPING", "the receiver is about to stop.")

    def _discard(self) -> None:
        if self._message is not None and self._message.incoming is not None:
            self._message.incoming.discard()

    def _quietly_send(self, data: bytes) -> None:
        with contextlib.suppress(PacsError):
            self.wire.send(data)


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "little")


def _text(value: bytes | None) -> str:
    return (value or b"").decode("latin-1").strip("\0 ")
