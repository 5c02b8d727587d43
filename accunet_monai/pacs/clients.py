"""Calling other systems: DICOM associations and DICOMweb clients as the site's settings say."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from accunet_monai.errors import PacsError
from accunet_monai.pacs.settings import DicomWeb, Dimse, Site

CONNECT_SECONDS = 10
ANSWER_SECONDS = 60
WEB_SECONDS = (CONNECT_SECONDS, 120)


@contextmanager
def associated(
    site: Site,
    dimse: Dimse,
    contexts: Sequence[PresentationContext],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[EventHandlerType] = (),
) -> Iterator[Association]:
    """An association with another application entity, released or aborted at the end.

    Args:
        site: whose AE title and TLS are ours.
        dimse: who is called.
        contexts: what is proposed.
        roles: for which of them we are the provider.
        handlers: of events.

    Raises:
        PacsError: ``PACS_UNREACHABLE`` (no connection), ``PACS_TLS`` (one of the certificates is not taken),
            ``PACS_REFUSED`` (association rejected).
    """
    ae = AE(ae_title=site.ae_title)
    ae.requested_contexts = list(contexts)
    ae.connection_timeout = CONNECT_SECONDS
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ANSWER_SECONDS
    tls = client_tls(site) if dimse.tls else None
    association = ae.associate(
        dimse.host,
        dimse.port,
        ae_title=dimse.ae_title,
        max_pdu=site.limits.max_pdu,
        ext_neg=list(roles),
        tls_args=(tls, dimse.host) if tls else None,
        evt_handlers=list(handlers),
    )
    try:
        if association.is_rejected:
            hint = "Let it know our AE title and address."
            raise PacsError("PACS_REFUSED", f"{dimse.ae_title} rejected the association.", hint=hint)
        if not association.is_established:
            where = f"{dimse.ae_title} at {dimse.host}:{dimse.port}"
            if tls is not None:
                _shake_hands(dimse, tls, where)
            hint = "Check address, port, TLS and that it runs."
            raise PacsError("PACS_UNREACHABLE", f"{where} does not answer.", hint=hint)
        yield association
    finally:
        if association.is_established:
            association.release()
        ae.shutdown()


def client_tls(site: Site) -> ssl.SSLContext:
    """Our side of mutual TLS, at least 1.2, by which the other's certificate and name are checked."""
    if site.tls is None:  # the settings refuse this combination
        raise PacsError("PACS_TLS", "the site has no tls section.")
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(site.tls.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(site.tls.certificate, site.tls.key)
    return context


def web_client(site: Site, web: DicomWeb) -> DICOMwebClient:
    """A DICOMweb client with the service's token, password, authority, and our certificate if it wants that.

    Raises:
        PacsError: ``PACS_SECRET`` when a file of these cannot be read.
    """
    session: requests.Session = create_session()
    session.trust_env = False  # no .netrc, no proxy of the environment
    try:
        if web.token_file is not None:
            session.headers["Authorization"] = f"Bearer {web.token_file.read_text(encoding='utf-8').strip()}"
        elif web.user is not None and web.password_file is not None:
            session.auth = (web.user, web.password_file.read_text(encoding="utf-8").strip())
    except OSError as error:
        raise PacsError("PACS_SECRET", f"a secret cannot be read ({error.strerror}).", path=error.filename) from error
    if web.tls and site.tls is not None:
        session.verify = str(site.tls.ca)
        session.cert = (str(site.tls.certificate), str(site.tls.key))
    if web.ca is not None:
        session.verify = str(web.ca)
    client = DICOMwebClient(url=web.url, session=session, timeout=WEB_SECONDS)
    client.set_http_retry_params(max_attempts=2, wait_exponential_multiplier=500)  # jobs and pulls have their own
    return client


def web_error(web: DicomWeb, error: requests.RequestException) -> PacsError:
    """What it means that an object could not be sent: ``PACS_TLS``, ``PACS_UNREACHABLE`` or ``SEND_REFUSED``."""
    if isinstance(error, requests.exceptions.SSLError):
        return tls_error(web.url, error)
    if error.response is None:
        return PacsError("PACS_UNREACHABLE", f"{web.url} does not answer.", hint="Check the address and its TLS.")
    return PacsError("SEND_REFUSED", f"{web.url} answered {error.response.status_code}.")


def tls_error(where: str, error: BaseException) -> PacsError:
    """``PACS_TLS``, with what OpenSSL says."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__context__
    reason = getattr(cause, "verify_message", None) or getattr(cause, "reason", None) or "no reason given"
    hint = "Check the dates, names and authorities of both certificates."
    return PacsError("PACS_TLS", f"no TLS with {where}: {reason}.", hint=hint)


def _shake_hands(dimse: Dimse, tls: ssl.SSLContext, where: str) -> None:
    """Raises ``PACS_TLS`` if that is why there is no association, which pynetdicom does not tell."""
    try:
        with (
            socket.create_connection((dimse.host, dimse.port), CONNECT_SECONDS) as plain,
            tls.wrap_socket(plain, server_hostname=dimse.host) as secured,
        ):
            secured.settimeout(1)
            secured.recv(1)  # an alert about our certificate comes after the handshake
    except ssl.SSLError as error:
        raise tls_error(where, error) from error
    except OSError:  # something else than TLS
        return
