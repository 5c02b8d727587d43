"""The DICOM upper layer on one connection (PS3.8 section 9.3), within bounds.

The length of a PDU is capped before it is read, and one that has begun must arrive within a time.

pynetdicom's own acceptor reads any length that a peer claims and holds whole messages in memory; its PDU classes are
used to encode and decode what is negotiated.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from enum import IntEnum

from accunet_monai.errors import PacsError

MAX_COMMAND_BYTES = 1 << 14
"""Command sets take some hundred bytes."""

_PDU_HEADER = struct.Struct(">BxL")
_PDV_HEADER = struct.Struct(">LBB")
_ELEMENT = struct.Struct("<HHL")


class Pdu(IntEnum):
    """Types of PDUs."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class Wire:
    """A connection on which PDUs come and go.

    Args:
        connection: the socket; closed by :meth:`close`.
        idle_seconds: longer silence ends it, and so does a PDU that takes longer.
    """

    def __init__(self, connection: socket.socket, idle_seconds: float) -> None:
        self._socket = connection
        self.idle_seconds = idle_seconds
        self._buffer = bytearray(1 << 14)
        self._patience = -1.0
        self._closed = False
        self._flags = int(socket.MSG_WAITALL)
        if isinstance(connection, ssl.SSLSocket):
            self._flags = 0
        else:
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(idle_seconds))

    def read(self, longest: int, deadline: float | None = None) -> tuple[Pdu, memoryview]:
        """The next PDU: its type and content, which is valid until the next call.

        Args:
            longest: bytes that its content may have.
            deadline: on the monotonic clock; by default after ``idle_seconds`` of silence.

        Raises:
            PacsError: ``PDU_TOO_LARGE``, ``PDU_UNKNOWN``, ``PEER_IDLE``, ``PEER_SLOW`` or ``PEER_GONE``.
        """
        started = self._receive(6, deadline, "PEER_IDLE")
        kind, length = _PDU_HEADER.unpack(started)
        if kind not in Pdu._value2member_map_:
            raise PacsError("PDU_UNKNOWN", f"a PDU of type {kind}.")
        if length > longest:
            raise PacsError("PDU_TOO_LARGE", f"a PDU that claims {length} bytes; {longest} are allowed.")
        return Pdu(kind), self._receive(length, deadline, "PEER_SLOW")

    def send(self, data: bytes) -> None:
        """Send encoded PDUs.

        Raises:
            PacsError: ``PEER_GONE``.
        """
        try:
            if not self._flags:
                self._socket.settimeout(self.idle_seconds)
            self._socket.sendall(data)
        except OSError as error:
            raise PacsError("PEER_GONE", f"the peer takes nothing ({error.strerror or error}).") from error

    def abort(self, reason: int = 0) -> None:
        """Send an A-ABORT of the service provider; harmless when the peer is gone."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(1)
            self._socket.sendall(_PDU_HEADER.pack(Pdu.ABORT, 4) + bytes((0, 0, 2, reason)))

    def release(self) -> None:
        """Answer an A-RELEASE-RQ, then let the peer close first: its last bytes are then not reset."""
        self.send(_PDU_HEADER.pack(Pdu.RELEASE_RP, 4) + bytes(4))
        with contextlib.suppress(OSError):
            self._socket.settimeout(1)
            self._socket.recv(1)

    def stop_reading(self) -> None:
        """Whoever reads is told that the peer is gone; answers can still be sent. From any thread."""
        self._shut(socket.SHUT_RD)

    def close(self) -> None:
        """Close the connection. From any thread."""
        self._closed = True
        self._shut(socket.SHUT_RDWR)
        self._socket.close()

    def _shut(self, how: int) -> None:
        """Below TLS: an ``SSLSocket`` that is shut down by itself reads ciphertext from then on."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, how)

    def _receive(self, count: int, deadline: float | None, late: str) -> memoryview:
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        view = memoryview(self._buffer)[:count]
        until = deadline or time.monotonic() + self.idle_seconds
        filled = 0
        while filled < count:
            self._wait_at_most(until - time.monotonic() if filled or deadline else self.idle_seconds)
            try:
                received = self._socket.recv_into(view[filled:], 0, self._flags)
            except (TimeoutError, BlockingIOError) as error:
                raise PacsError(late, "the peer sent nothing, or too slowly.") from error
            except OSError as error:
                raise PacsError("PEER_GONE", f"the connection broke ({error.strerror or error}).") from error
            if received == 0 or self._closed:  # a closed SSLSocket, too, may have read ciphertext
                raise PacsError("PEER_GONE", "the peer closed the connection.")
            filled += received
        return view

    def _wait_at_most(self, seconds: float) -> None:
        """Bound the next call. The kernel does it, and fills the buffer in one call; TLS has neither."""
        seconds = max(seconds, 0.001)
        if not self._flags:
            self._socket.settimeout(seconds)
        elif seconds != self._patience:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
            self._patience = seconds


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))


def fragments(content: memoryview) -> Iterator[tuple[int, bool, bool, memoryview]]:
    """The presentation data values of a P-DATA-TF: context, whether of the command, whether the last one, data.

    Raises:
        PacsError: ``PDU_MALFORMED``.
    """
    at = 0
    while at < len(content):
        if len(content) - at < _PDV_HEADER.size:
            raise PacsError("PDU_MALFORMED", "a data value ends within its header.")
        length, context, control = _PDV_HEADER.unpack_from(content, at)
        end = at + 4 + length
        if length < 2 or end > len(content) or control > 3:
            raise PacsError("PDU_MALFORMED", "a data value does not fit its PDU.")
        yield context, bool(control & 1), bool(control & 2), content[at + _PDV_HEADER.size : end]
        at = end


def decode_command(data: bytes) -> dict[int, bytes]:
    """The elements of group 0000 of a command set (PS3.7 section 6.3: implicit VR, little endian), element → value.

    Raises:
        PacsError: ``PDU_MALFORMED``.
    """
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _ELEMENT.size:
            raise PacsError("PDU_MALFORMED", "a command set ends within an element.")
        group, element, length = _ELEMENT.unpack_from(data, at)
        at += _ELEMENT.size
        if group != 0 or length > len(data) - at:
            raise PacsError("PDU_MALFORMED", "a command set that is none.")
        found[element] = data[at : at + length]
        at += length
    return found


def encode_response(context: int, elements: dict[int, bytes | int]) -> bytes:
    """A P-DATA-TF with a command set and no dataset; whole numbers are of type US, texts are padded."""
    body = b""
    for element, value in sorted(elements.items()):
        data = struct.pack("<H", value) if isinstance(value, int) else value + b"\0" * (len(value) % 2)
        body += _ELEMENT.pack(0, element, len(data)) + data
    body = _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(body)) + body
    pdv = _PDV_HEADER.pack(len(body) + 2, context, 3) + body
    return _PDU_HEADER.pack(Pdu.DATA, len(pdv)) + pdv
