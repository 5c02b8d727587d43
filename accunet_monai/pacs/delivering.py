"""Results to a destination, and whether it has them: C-STORE and C-FIND, or STOW-RS and QIDO-RS.

The bytes sent are those of the stored file, each time. That a destination answered "stored" is not enough: it is asked
for the object before a delivery counts as confirmed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pydicom
import requests
from pydicom.dataset import Dataset
from pynetdicom import _config
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from accunet_monai.errors import PacsError
from accunet_monai.pacs.clients import associated, web_client
from accunet_monai.pacs.settings import Destination, DicomWeb, Dimse, Site

_config.STORE_SEND_CHUNKED_DATASET = True  # the file's own bytes, not decoded and encoded again

_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_PENDING = (0xFF00, 0xFF01)


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
        return WebChannel(pacs.dicomweb)
    if pacs.dimse is None:  # the settings refuse this
        raise PacsError("PACS_UNKNOWN", f"{pacs.name!r} has no {destination.kind}.")
    return DimseChannel(site, pacs.dimse)


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

    def __init__(self, web: DicomWeb) -> None:
        self.web = web

    def send(self, file: Path) -> None:
        """See :class:`Channel`."""
        try:
            web_client(self.web).store_instances([pydicom.dcmread(file)])
        except requests.RequestException as error:
            raise _web_error(self.web, error) from error

    def has(self, file: Path) -> bool:
        """See :class:`Channel`."""
        wanted = identity(file)
        try:
            found = web_client(self.web).search_for_instances(
                wanted.StudyInstanceUID,
                wanted.SeriesInstanceUID,
                search_filters={"SOPInstanceUID": wanted.SOPInstanceUID},
            )
        except requests.RequestException as error:
            if error.response is not None and error.response.status_code == 404:
                return False  # of a study that it does not know
            raise _web_error(self.web, error) from error
        uids = [item.get("00080018", {}).get("Value", [""])[0] for item in found]
        return wanted.SOPInstanceUID in uids


def identity(file: Path) -> Dataset:
    """The UIDs that name the object of a file."""
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_IDENTITY))


def _check_status(status: Dataset, title: str) -> None:
    if "Status" not in status:
        raise PacsError("PACS_UNREACHABLE", f"the association with {title} was lost while sending.")
    if status.Status != 0x0000 and status.Status & 0xF000 != 0xB000:  # B…: stored, with a warning
        raise PacsError("SEND_REFUSED", f"{title} answered C-STORE with status {status.Status:04X}.")


def _web_error(web: DicomWeb, error: requests.RequestException) -> PacsError:
    if error.response is None:
        return PacsError("PACS_UNREACHABLE", f"{web.url} does not answer.", hint="Check the address and its TLS.")
    return PacsError("SEND_REFUSED", f"{web.url} answered {error.response.status_code}.")
