"""Who may associate with us, and on what terms (PS3.8 section 9.3.4, PS3.7 annex D)."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom import uid
from pynetdicom import AllStoragePresentationContexts, build_context
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from accunet_monai.errors import PacsError
from accunet_monai.pacs.settings import Peer, Site
from accunet_monai.volumes.dicom_decoders import DECODABLE

MAX_ASSOCIATE_BYTES = 1 << 18
"""Of an A-ASSOCIATE-RQ: 128 presentation contexts with all transfer syntaxes take half of it."""

TRANSFER_SYNTAXES = [
    *(uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian),
    *(uid.ExplicitVRBigEndian, *sorted(DECODABLE)),
]
"""Those that can be read later; the first that the peer offers too is taken."""

IMPLEMENTATION_CLASS_UID = "1.2.826.0.1.3680043.10.1587.1"
IMPLEMENTATION_VERSION = "ACCUNET_MONAI"

CALLING, CALLED, CONTEXT_NAME, LIMIT, BUSY = (1, 1, 3), (1, 1, 7), (1, 1, 2), (2, 3, 2), (2, 3, 1)
"""Result, source and reason of rejections."""

_RESOLVE_SECONDS = 60


class Peers:
    """Known peers: AE titles, each with the addresses that it may come from.

    Args:
        peers: of the site's settings; host names are looked up now and every minute; one that is not found
            keeps the addresses that it had.
    """

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = peers
        self._resolved_at = -float("inf")
        self._addresses: dict[str, set[str]] = {}
        self._of_host: dict[str, set[str]] = {}

    def knows(self, address: str) -> bool:
        """Whether any peer may come from this address."""
        return any(plain_address(address) in known for known in self._resolved().values())

    def allows(self, title: str, address: str) -> bool:
        """Whether this peer may come from this address."""
        return plain_address(address) in self._resolved().get(title, set())

    @staticmethod
    def resolves(host: str) -> bool:
        """Whether a host name or address leads to an address."""
        return bool(_lookup(host))

    def _resolved(self) -> dict[str, set[str]]:
        if time.monotonic() - self._resolved_at > _RESOLVE_SECONDS:
            for host in {host for peer in self._peers for host in peer.addresses}:
                if found := _lookup(host):
                    self._of_host[host] = set(found)
            self._addresses = {
                peer.ae_title: {found for host in peer.addresses for found in self._of_host.get(host, ())}
                for peer in self._peers
            }
            self._resolved_at = time.monotonic()
        return self._addresses


@dataclass(frozen=True)
class Negotiated:
    """An accepted association.

    Args:
        title: the peer's AE title.
        contexts: identifier → (SOP class, transfer syntax).
        answer: the encoded A-ASSOCIATE-AC.
    """

    title: str
    contexts: dict[int, tuple[str, str]]
    answer: bytes


class RejectedError(PacsError):
    """The association is refused; ``answer`` says so to the peer."""

    def __init__(self, code: str, message: str, reason: tuple[int, int, int]) -> None:
        super().__init__(code, message)
        primitive = A_ASSOCIATE()
        primitive.result, primitive.result_source, primitive.diagnostic = reason
        pdu = A_ASSOCIATE_RJ()
        pdu.from_primitive(primitive)
        self.answer = pdu.encode()


class Acceptor:
    """Decides on association requests for a site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.peers = Peers(site.peers)
        storage = [build_context(str(cx.abstract_syntax), TRANSFER_SYNTAXES) for cx in AllStoragePresentationContexts]
        commitment = build_context(StorageCommitmentPushModel, TRANSFER_SYNTAXES[:2])
        commitment.scu_role = commitment.scp_role = True  # a PACS that calls us to report is the provider
        self._supported = [build_context(Verification), commitment, *storage]

    def decide(self, content: bytes, address: str) -> Negotiated:
        """The terms for an A-ASSOCIATE-RQ's content.

        Raises:
            RejectedError: ``AE_UNKNOWN``, ``AE_CALLED``, ``ASSOCIATE_CONTEXT``.
            PacsError: ``PDU_MALFORMED``.
        """
        try:
            pdu = A_ASSOCIATE_RQ()
            pdu.decode(b"\x01\x00" + len(content).to_bytes(4, "big") + content)
            request = pdu.to_primitive()
            title, called = str(request.calling_ae_title).strip(), str(request.called_ae_title).strip()
            offered = request.presentation_context_definition_list
        except Exception as error:  # pynetdicom raises many types on damaged bytes; all mean the same here
            raise PacsError("PDU_MALFORMED", "an A-ASSOCIATE-RQ that is none.") from error
        if not self.peers.allows(title, address):
            raise RejectedError("AE_UNKNOWN", "no peer has this AE title at this address.", CALLING)
        if self._site.require_called_ae_title and called != self._site.ae_title:
            raise RejectedError("AE_CALLED", "another AE title was called.", CALLED)
        if request.application_context_name != uid.UID("1.2.840.10008.3.1.1.1"):
            raise RejectedError("ASSOCIATE_CONTEXT", "another application context was asked for.", CONTEXT_NAME)
        proposed = [item for item in request.user_information if isinstance(item, SCP_SCU_RoleSelectionNegotiation)]
        wanted = {uid.UID(str(item.sop_class_uid)): (item.scu_role, item.scp_role) for item in proposed}
        results, roles = negotiate_as_acceptor(offered, self._supported, wanted)
        accepted = {
            int(cx.context_id or 0): (str(cx.abstract_syntax), str(cx.transfer_syntax[0]))
            for cx in results
            if cx.result == 0
        }
        return Negotiated(title, accepted, self._answer(request, results, roles))

    def _answer(
        self,
        request: A_ASSOCIATE,
        results: list[PresentationContext],
        roles: list[SCP_SCU_RoleSelectionNegotiation],
    ) -> bytes:
        longest, ours, version = (
            MaximumLengthNotification(),
            ImplementationClassUIDNotification(),
            ImplementationVersionNameNotification(),
        )
        longest.maximum_length_received = self._site.limits.max_pdu
        ours.implementation_class_uid = uid.UID(IMPLEMENTATION_CLASS_UID)
        version.implementation_version_name = IMPLEMENTATION_VERSION
        primitive = A_ASSOCIATE()
        primitive.application_context_name = request.application_context_name
        primitive.calling_ae_title, primitive.called_ae_title = request.calling_ae_title, request.called_ae_title
        primitive.result, primitive.result_source = 0, 1
        primitive.presentation_context_definition_results_list = results
        primitive.user_information = [longest, ours, version, *roles]
        pdu = A_ASSOCIATE_AC()
        pdu.from_primitive(primitive)
        return pdu.encode()


def plain_address(text: str) -> str:
    """An address as the settings have it: IPv4 within IPv6 is IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _lookup(host: str) -> list[str]:
    try:
        return [plain_address(host)]
    except ValueError:
        pass
    try:
        return [plain_address(str(entry[4][0])) for entry in socket.getaddrinfo(host, None)]
    except OSError:
        return []
