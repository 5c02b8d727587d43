"""Fetching series from a PACS: C-GET, C-MOVE to ourselves, or WADO-RS, what is not here yet and no faster than allowed.

Fetched instances are taken in by the same checks as those that are sent, and count when they are on disk.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import build_context, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from requests.exceptions import SSLError
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from accunet_monai.errors import AccunetError, PacsError
from accunet_monai.pacs.acceptor import TRANSFER_SYNTAXES
from accunet_monai.pacs.association import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS
from accunet_monai.pacs.clients import associated, tls_error, web_client
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.query import RemoteSeries, date_range, find_remote
from accunet_monai.pacs.registrar import Arrival, Registrar, raise_priority
from accunet_monai.pacs.settings import DicomWeb, Dimse, Pull, Site
from accunet_monai.pacs.storage import Storage
from accunet_monai.pacs.tables import instances

IMAGES = (
    *(CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage),
    *(EnhancedCTImageStorage, EnhancedMRImageStorage, EnhancedPETImageStorage),
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)
"""What C-GET can bring: an association has room for 128 classes, and bundles take images of these."""

_PENDING = (0xFF00, 0xFF01)


class Pace:
    """Waits so that no more than so many instances a minute come; ``None`` for no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = 0.0 if per_minute is None else 60 / per_minute
        self._next = time.monotonic()

    def wait(self) -> None:
        """Before the next instance."""
        time.sleep(max(self._next - time.monotonic(), 0))
        self._next = max(self._next, time.monotonic()) + self._seconds


class Puller:
    """Fetches what a query of the site finds.

    Args:
        site: its settings.
        engine: its database.
        storage: its storage.
        registrar: commits rows.
        pull: the query, and by what way.
    """

    def __init__(self, site: Site, engine: Engine, storage: Storage, registrar: Registrar, pull: Pull) -> None:
        self._site, self._engine, self._storage, self._registrar = site, engine, storage, registrar
        self._pull, self._pacs = pull, site.pacs_named(pull.pacs)
        self._pace = Pace(pull.per_minute)

    def missing(self) -> list[RemoteSeries]:
        """The series that the PACS has and that are not whole here.

        Raises:
            PacsError: what :func:`find_remote` raises.
        """
        query = dict(self._pull.query)
        if not {"StudyDate", "StudyInstanceUID", "AccessionNumber"} & set(query):
            query["StudyDate"] = date_range(self._pull.days)
        found = find_remote(self._site, self._pacs, query, by_web=self._pull.by == "dicomweb")
        with reading(self._engine) as connection:
            here = select(instances.c.series_uid, func.count()).group_by(instances.c.series_uid)
            counts = {uid: int(count) for uid, count in connection.execute(here)}
        return [one for one in found if counts.get(one.series_uid, 0) < (one.instances or 2**31)]

    def run(self, wanted: Sequence[RemoteSeries] | None = None) -> Counter[str]:
        """Fetch them one after the other; returns what became of the instances, by outcome or code.

        Raises:
            PacsError: ``STORAGE_FULL``, and what :meth:`missing` raises; one series that fails is counted.
        """
        counts: Counter[str] = Counter()
        for one in self.missing() if wanted is None else wanted:
            association = uuid.uuid4().hex
            try:
                counts += self._fetch(one, association)
            except PacsError as error:
                if error.code == "STORAGE_FULL":
                    raise
                counts[error.code] += 1
            finally:
                self._registrar.closed(association)
        return counts

    def _fetch(self, one: RemoteSeries, association: str) -> Counter[str]:
        if self._pull.by == "dicomweb" and self._pacs.dicomweb is not None:
            return self._by_web(self._pacs.dicomweb, one, association)
        if self._pacs.dimse is None:
            raise PacsError("PACS_WAY", f"the PACS {self._pacs.name!r} has no dimse.")
        if self._pull.by == "move":
            return self._by_move(self._pacs.dimse, one)
        return self._by_get(self._pacs.dimse, one, association)

    def _by_get(self, dimse: Dimse, one: RemoteSeries, association: str) -> Counter[str]:
        counts: Counter[str] = Counter()

        def store(event: evt.Event) -> int:
            request: Any = event.request
            uids = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
            self._pace.wait()
            outcome = self._take(*uids, str(event.context.transfer_syntax), request.DataSet.getbuffer(), association)
            counts[outcome] += 1
            kept = outcome in ("new", "same", "aside")
            return SUCCESS if kept else CANNOT_UNDERSTAND if outcome.startswith("INSTANCE") else OUT_OF_RESOURCES

        model = StudyRootQueryRetrieveInformationModelGet
        contexts = [build_context(model), *(build_context(image, TRANSFER_SYNTAXES) for image in IMAGES)]
        roles = [build_role(image, scp_role=True) for image in IMAGES]
        handlers = [(evt.EVT_C_STORE, store)]
        with associated(self._site, dimse, contexts, roles=roles, handlers=handlers) as connection:
            _completed(connection.send_c_get(_identifier(one), model), dimse.ae_title)
        return counts

    def _by_move(self, dimse: Dimse, one: RemoteSeries) -> Counter[str]:
        """The PACS sends to our receiver, which runs by itself."""
        model = StudyRootQueryRetrieveInformationModelMove
        with associated(self._site, dimse, [build_context(model)]) as connection:
            moved = _completed(connection.send_c_move(_identifier(one), self._site.ae_title, model), dimse.ae_title)
        with self._engine.begin() as transaction:
            raise_priority(transaction, one.series_uid, self._pull.priority)
        return Counter({"moved": moved})

    def _by_web(self, web: DicomWeb, one: RemoteSeries, association: str) -> Counter[str]:
        counts: Counter[str] = Counter()
        try:
            answers = web_client(self._site, web).iter_series(
                one.study_uid, one.series_uid, media_types=(("application/dicom", "*"),)
            )
            for ds in answers:
                self._pace.wait()
                counts[self._take_dataset(ds, association)] += 1
        except PacsError:
            raise
        except SSLError as error:
            raise tls_error(web.url, error) from error
        except Exception as error:  # requests and dicomweb-client raise many types; a message may quote the address
            message = f"{web.url} did not answer WADO ({type(error).__name__})."
            raise PacsError("RETRIEVE_FAILED", message) from error
        return counts

    def _take_dataset(self, ds: Dataset, association: str) -> str:
        buffer = BytesIO()
        ds.save_as(buffer, enforce_file_format=True)  # elements that nobody looked at are written as they came
        file = buffer.getbuffer()
        start = 144 + int.from_bytes(file[140:144], "little")
        meta = ds.file_meta
        uids = str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID)
        return self._take(*uids, str(meta.TransferSyntaxUID), file[start:], association)

    def _take(self, sop_class: str, sop_instance: str, syntax: str, data: memoryview, association: str) -> str:
        """Take in an instance; returns its outcome, or the code for which it was left out."""
        source, priority = f"pull:{self._pull.name}", self._pull.priority
        try:
            incoming = self._storage.open_incoming(self._registrar.receiver, sop_class, sop_instance, syntax)
            try:
                incoming.write(data)
                return self._registrar.register(Arrival(incoming.keep(), source, association, priority))
            finally:
                incoming.discard()
        except AccunetError as error:
            return error.code
        except (OSError, SQLAlchemyError):
            return "NOT_DURABLE"


def _identifier(one: RemoteSeries) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID, identifier.SeriesInstanceUID = one.study_uid, one.series_uid
    return identifier


def _completed(answers: object, title: str) -> int:
    """Follow the answers to a C-GET or C-MOVE to their end; returns how many sub-operations went well."""
    code, done = None, 0
    for status, _ in answers:  # type: ignore[attr-defined]
        code = getattr(status, "Status", None)
        done = int(getattr(status, "NumberOfCompletedSuboperations", None) or done)
        if code not in _PENDING:
            break
    if code not in (0x0000, 0xB000):  # B000: some failed, which the counts tell
        said = "nothing" if code is None else f"status {code:04X}"
        raise PacsError("RETRIEVE_FAILED", f"{title} ended the retrieval with {said}.")
    return done
