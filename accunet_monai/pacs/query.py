"""What a PACS has: queries by C-FIND or QIDO-RS, answers as plain facts that name series and nothing of a patient."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pynetdicom import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)
from requests.exceptions import SSLError

from accunet_monai.errors import PacsError, did_you_mean
from accunet_monai.pacs.clients import associated, tls_error, web_client
from accunet_monai.pacs.settings import DicomWeb, Dimse, Pacs, Site

STUDY_KEYS = "AccessionNumber ModalitiesInStudy PatientID StudyDate StudyDescription StudyInstanceUID".split()  # noqa: SIM905
SERIES_KEYS = "BodyPartExamined Modality ProtocolName SeriesDescription SeriesInstanceUID SeriesNumber".split()  # noqa: SIM905
MAX_ANSWERS = 100_000
_PENDING = (0xFF00, 0xFF01)


@dataclass(frozen=True)
class RemoteSeries:
    """A series that a PACS has."""

    study_uid: str
    series_uid: str
    instances: int | None


def echo(site: Site, dimse: Dimse) -> float:
    """C-ECHO; returns the seconds that it took.

    Raises:
        PacsError: ``PACS_UNREACHABLE``, ``PACS_REFUSED``, ``PACS_ECHO``.
    """
    started = time.monotonic()
    with associated(site, dimse, [build_context(Verification)]) as association:
        status = association.send_c_echo()
    if getattr(status, "Status", None) != 0:
        raise PacsError("PACS_ECHO", f"{dimse.ae_title} did not answer C-ECHO with success.")
    return time.monotonic() - started


def date_range(days: int, today: date | None = None) -> str:
    """A range of StudyDate from so many days ago until tomorrow, as DICOM writes it.

    A study of before midnight comes after it, and the scanner's clock may be in another time zone than this one: so the
    least is yesterday to tomorrow.

    Example:
        >>> date_range(1, date(2026, 3, 1))
        '20260228-20260302'
    """
    last = today or date.today()
    return f"{last - timedelta(days=days):%Y%m%d}-{last + timedelta(days=1):%Y%m%d}"


def checked_query(query: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The matching keys of the study level and of the series level.

    Raises:
        PacsError: ``QUERY_KEY``.
    """
    for key in query:
        if key not in (*STUDY_KEYS, *SERIES_KEYS):
            near = did_you_mean(key, (*STUDY_KEYS, *SERIES_KEYS))
            hint = near or f"Known: {', '.join((*STUDY_KEYS, *SERIES_KEYS))}."
            raise PacsError("QUERY_KEY", f"{key!r} is no key of a query.", hint=hint)
    return (
        {key: value for key, value in query.items() if key in STUDY_KEYS},
        {key: value for key, value in query.items() if key in SERIES_KEYS},
    )


def find_remote(site: Site, pacs: Pacs, query: Mapping[str, str], *, by_web: bool) -> list[RemoteSeries]:
    """The series of a PACS that match, in the order of its answers.

    Args:
        site: who asks.
        pacs: who is asked.
        query: DICOM keyword → what it must match (``*`` and ``?`` as the standard has them, ranges of dates).
        by_web: by QIDO-RS, otherwise by C-FIND.

    Raises:
        PacsError: ``QUERY_KEY``, ``QUERY_FAILED``, ``PACS_WAY`` and what :func:`associated` raises.
    """
    studies, series = checked_query(query)
    if by_web:
        if pacs.dicomweb is None:
            raise PacsError("PACS_WAY", f"the PACS {pacs.name!r} has no dicomweb.")
        return list(_by_qido(site, pacs.dicomweb, studies, series))
    if pacs.dimse is None:
        raise PacsError("PACS_WAY", f"the PACS {pacs.name!r} has no dimse.")
    return list(_by_find(site, pacs.dimse, studies, series))


def count_remote(site: Site, pacs: Pacs, study_uid: str, series_uid: str) -> int | None:
    """How many instances of a series the PACS has; ``None`` when it does not say."""
    query = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
    try:
        found = find_remote(site, pacs, query, by_web=pacs.dicomweb is not None)
    except PacsError:
        return None
    return next((one.instances for one in found if one.series_uid == series_uid), None)


def _by_find(site: Site, dimse: Dimse, studies: Mapping[str, str], series: Mapping[str, str]) -> Iterator[RemoteSeries]:
    try:
        yield from _found(site, dimse, studies, series)
    except PacsError:
        raise
    except Exception as error:  # an answer without UIDs or with a count that is none; its text is not quoted
        message = f"{dimse.ae_title} gave an unreadable answer to C-FIND ({type(error).__name__})."
        raise PacsError("QUERY_FAILED", message) from error


def _found(site: Site, dimse: Dimse, studies: Mapping[str, str], series: Mapping[str, str]) -> Iterator[RemoteSeries]:
    context = build_context(StudyRootQueryRetrieveInformationModelFind)
    with associated(site, dimse, [context]) as association:

        def ask(level: str, keys: Mapping[str, str]) -> Iterator[Dataset]:
            identifier = Dataset()
            identifier.QueryRetrieveLevel = level
            for key, value in keys.items():
                setattr(identifier, key, value)
            answers = 0
            for status, answer in association.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind):
                code = getattr(status, "Status", None)
                if code in _PENDING and answer is not None:
                    answers += 1
                    if answers > MAX_ANSWERS:
                        raise PacsError("QUERY_FAILED", f"more than {MAX_ANSWERS} answers.", hint="Ask for less.")
                    yield answer
                elif code != 0:
                    raise PacsError("QUERY_FAILED", f"{dimse.ae_title} answered C-FIND with {_said(code)}.")

        found = [str(answer.StudyInstanceUID) for answer in ask("STUDY", {"StudyInstanceUID": "", **studies})]
        for study in dict.fromkeys(found):
            wanted = {"SeriesInstanceUID": "", "NumberOfSeriesRelatedInstances": "", **series}
            for answer in ask("SERIES", {**wanted, "StudyInstanceUID": study}):
                count = answer.get("NumberOfSeriesRelatedInstances")
                yield RemoteSeries(study, str(answer.SeriesInstanceUID), None if count in (None, "") else int(count))


def _by_qido(
    site: Site, web: DicomWeb, studies: Mapping[str, str], series: Mapping[str, str]
) -> Iterator[RemoteSeries]:
    client = web_client(site, web)
    try:
        found = client.search_for_studies(search_filters=dict(studies), get_remaining=True)
        for study in dict.fromkeys(_value(answer, "StudyInstanceUID") for answer in found):
            filters = dict(series)
            fields = ["NumberOfSeriesRelatedInstances"]
            for answer in client.search_for_series(study, search_filters=filters, fields=fields, get_remaining=True):
                count = _value(answer, "NumberOfSeriesRelatedInstances")
                yield RemoteSeries(study, _value(answer, "SeriesInstanceUID"), int(count) if count else None)
    except PacsError:
        raise
    except SSLError as error:
        raise tls_error(web.url, error) from error
    except Exception as error:  # requests and dicomweb-client raise many types; a message may quote the query
        raise PacsError("QUERY_FAILED", f"{web.url} did not answer QIDO ({type(error).__name__}).") from error


def _value(answer: Mapping[str, Any], keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    values = answer.get(f"{tag:08X}", {}).get("Value", [])
    if not values and keyword_for_tag(tag or 0) == "":
        return ""
    return str(values[0]) if values else ""


def _said(code: int | None) -> str:
    return "nothing" if code is None else f"status {code:04X}"
