"""Results to a destination, and whether it has them: C-STORE and C-FIND, STOW-RS and QIDO-RS, storage commitment.

The bytes sent are those of the stored file, each time. That a destination answered "stored" is not enough: it is asked
for the object before a delivery counts as confirmed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import pydicom
import requests
from pydicom.dataset import Dataset
from pynetdicom import _config, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)
from sqlalchemy import Engine

from accunet_monai.errors import PacsError
from accunet_monai.pacs.clients import associated, web_client, web_error
from accunet_monai.pacs.commitment import answer, ask, take_report
from accunet_monai.pacs.database import make_engine
from accunet_monai.pacs.settings import Destination, DicomWeb, Dimse, Site

_config.STORE_SEND_CHUNKED_DATASET = True  # the file's own bytes, not decoded and encoded again

_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_PENDING = (0xFF00, 0xFF01)

SAME_ASSOCIATION_SECONDS, COMMITMENT_SECONDS = 5.0, 60.0
"""Of waiting for a commitment: with the association held open, and in all."""


class Channel(Protocol):
    """A way to one destination."""

    def send(self, file: Path) -> None:
        """Send a DICOM file.

        Raises:
            PacsError: ``PACS_UNREACHABLE``, ``PACS_REFUSED``, ``SEND_REFUSED``; all of them may pass.
        """

    def has(self, file: Path) -> bool:
        """Ask whether the destination has the object of a file; raises as :meth:`send`."""


def open_channel(site: Site, destination: Destination) -> Channel:
    """The way to a destination that the settings name."""
    pacs = site.pacs_named(destination.pacs)
    if destination.kind == "dicomweb" and pacs.dicomweb is not None:
        channel: Channel = WebChannel(site, pacs.dicomweb)
    elif destination.kind == "dimse" and pacs.dimse is not None:
        channel = DimseChannel(site, pacs.dimse)
    else:  # the settings refuse this
        raise PacsError("PACS_UNKNOWN", f"{pacs.name!r} has no {destination.kind}.")
    if destination.confirm == "commitment" and pacs.dimse is not None:
        return CommittedChannel(site, channel, pacs.dimse)
    return channel


class DimseChannel:
    """C-STORE and C-FIND over an association of their own."""

    def __init__(self, site: Site, dimse: Dimse) -> None:
        self.site, self.dimse = site, dimse

    def send(self, file: Path) -> None:
        """See :class:`Channel`."""
        meta = pydicom.dcmread(file, stop_before_pixels=True).file_meta
        context = build_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
        with associated(self.site, self.dimse, [context]) as association:
            try:
                status = association.send_c_store(file)
            except (ValueError, RuntimeError) as error:  # context not accepted; association lost
                code = "SEND_REFUSED" if isinstance(error, ValueError) else "PACS_UNREACHABLE"
                raise PacsError(code, f"{self.dimse.ae_title} did not take the object.") from error
        _check_status(status, self.dimse.ae_title)

    def has(self, file: Path) -> bool:
        """See :class:`Channel`."""
        query = identity(file)
        query.QueryRetrieveLevel = "IMAGE"
        found = 0
        with associated(
            self.site, self.dimse, [build_context(StudyRootQueryRetrieveInformationModelFind)]
        ) as association:
            for status, answer in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
                if not status or status.Status not in (0x0000, *_PENDING):
                    raise PacsError("QUERY_FAILED", f"{self.dimse.ae_title} did not answer the query.")
                if status.Status in _PENDING and answer is not None:
                    found += answer.get("SOPInstanceUID") == query.SOPInstanceUID
        return found > 0


class WebChannel:
    """STOW-RS and QIDO-RS."""

    def __init__(self, site: Site, web: DicomWeb) -> None:
        self.site, self.web = site, web

    def send(self, file: Path) -> None:
        """See :class:`Channel`."""
        try:
            web_client(self.site, self.web).store_instances([pydicom.dcmread(file)])
        except requests.RequestException as error:
            raise web_error(self.web, error) from error

    def has(self, file: Path) -> bool:
        """See :class:`Channel`."""
        wanted = identity(file)
        try:
            found = web_client(self.site, self.web).search_for_instances(
                wanted.StudyInstanceUID,
                wanted.SeriesInstanceUID,
                search_filters={"SOPInstanceUID": wanted.SOPInstanceUID},
            )
        except requests.RequestException as error:
            if error.response is not None and error.response.status_code == 404:
                return False  # of a study that it does not know
            raise web_error(self.web, error) from error
        uids = [item.get("00080018", {}).get("Value", [""])[0] for item in found]
        return wanted.SOPInstanceUID in uids


class CommittedChannel:
    """Sends by another channel, and asks by storage commitment.

    Args:
        site: who sends.
        channel: to send by.
        dimse: who is asked.
    """

    def __init__(self, site: Site, channel: Channel, dimse: Dimse) -> None:
        self.site, self.channel, self.dimse = site, channel, dimse

    def send(self, file: Path) -> None:
        """See :class:`Channel`."""
        self.channel.send(file)

    def has(self, file: Path) -> bool:
        """Whether it takes responsibility for the object.

        Raises:
            PacsError: ``NOT_COMMITTED`` when it does not say so in time; what it says later counts the next time.
        """
        ds = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
        engine = make_engine(self.site.database_url)
        try:
            kept = answer(engine, self.dimse.ae_title, ds.SOPInstanceUID)
            return self._ask(engine, ds) if kept is None else kept
        finally:
            engine.dispose()

    def _ask(self, engine: Engine, ds: Dataset) -> bool:
        title = self.dimse.ae_title
        with engine.begin() as connection:
            question = ask(connection, title, ds.SOPClassUID, ds.SOPInstanceUID)
        started = time.monotonic()

        def reported(event: evt.Event) -> tuple[int, None]:
            return (0x0000 if take_report(engine, title, event.event_information) else 0x0112), None

        def said(seconds: float) -> bool | None:
            kept = None
            while kept is None and time.monotonic() < started + seconds:
                time.sleep(0.1)
                kept = answer(engine, title, ds.SOPInstanceUID, question.TransactionUID)
            return kept

        context, handlers = build_context(StorageCommitmentPushModel), [(evt.EVT_N_EVENT_REPORT, reported)]
        with associated(self.site, self.dimse, [context], handlers=handlers) as association:
            model, instance = StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            status, _ = association.send_n_action(question, 1, model, instance)
            _check_status(status, title)
            kept = said(SAME_ASSOCIATION_SECONDS)
        kept = said(COMMITMENT_SECONDS) if kept is None else kept
        if kept is None:
            hint = "It reports to our receiver: let it know our AE title, address and port."
            raise PacsError("NOT_COMMITTED", f"{title} has not said whether it keeps the object.", hint=hint)
        return kept


def identity(file: Path) -> Dataset:
    """The UIDs that name the object of a file."""
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_IDENTITY))


def _check_status(status: Dataset, title: str) -> None:
    if "Status" not in status:
        raise PacsError("PACS_UNREACHABLE", f"the association with {title} was lost while sending.")
    if status.Status != 0x0000 and status.Status & 0xF000 != 0xB000:  # B…: stored, with a warning
        raise PacsError("SEND_REFUSED", f"{title} answered with status {status.Status:04X}.")
