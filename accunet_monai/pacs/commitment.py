"""Storage commitment (PS3.4 annex J): a PACS takes responsibility for an object, or says that it will not.

It answers when it likes: on the association that asked, or on one of its own to our receiver, which is another process
and perhaps another machine. So questions and answers stand in the database.
"""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid
from sqlalchemy import Connection, Engine, select, update

from accunet_monai.pacs.database import insert_new, now, reading
from accunet_monai.pacs.tables import commitments

MAX_REPORT_BYTES = 1 << 16
"""Ours ask for one object each; an answer takes some hundred bytes."""


def ask(connection: Connection, title: str, sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """Write down a question; returns it as the action information of an N-ACTION.

    Args:
        connection: inside a transaction.
        title: the AE title of the PACS; an answer from another does not count.
        sop_class_uid: of the object.
        sop_instance_uid: of the object.
    """
    question, one = Dataset(), Dataset()
    question.TransactionUID = generate_uid()
    one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    question.ReferencedSOPSequence = [one]
    row = {"transaction_uid": question.TransactionUID, "ae_title": title, "sop_instance_uid": sop_instance_uid}
    insert_new(connection, commitments, {**row, "asked_at": now()})
    return question


def take_report(engine: Engine, title: str, report: Dataset) -> bool:
    """Write down an answer, the information of an N-EVENT-REPORT; false where nobody asked this PACS.

    Raises:
        AttributeError, ValueError: it is none.
    """
    kept = {str(one.ReferencedSOPInstanceUID) for one in report.get("ReferencedSOPSequence") or ()}
    kept -= {str(one.ReferencedSOPInstanceUID) for one in report.get("FailedSOPSequence") or ()}
    asked = (commitments.c.transaction_uid == str(report.TransactionUID)) & (commitments.c.ae_title == title)
    with engine.begin() as connection:
        row = connection.execute(select(commitments).where(asked)).one_or_none()
        if row is None:
            return False
        outcome = "kept" if row.sop_instance_uid in kept else "failed"
        connection.execute(update(commitments).where(asked).values(outcome=outcome))
    return True


def read_report(data: bytes, syntax: str) -> Dataset:
    """The dataset of an N-EVENT-REPORT in a transfer syntax without compression."""
    return read_dataset(BytesIO(data), syntax == ImplicitVRLittleEndian, True)


def answer(engine: Engine, title: str, sop_instance_uid: str, transaction_uid: str | None = None) -> bool | None:
    """Whether a PACS keeps an object; ``None`` while it has not said.

    Args:
        engine: of the database.
        title: the AE title of the PACS.
        sop_instance_uid: of the object.
        transaction_uid: of the question whose refusal counts; that it keeps the object counts from earlier ones, too.
    """
    about = (commitments.c.ae_title == title) & (commitments.c.sop_instance_uid == sop_instance_uid)
    with reading(engine) as connection:
        found = {row.transaction_uid: row.outcome for row in connection.execute(select(commitments).where(about))}
    if "kept" in found.values():
        return True
    return False if transaction_uid is not None and found.get(transaction_uid) == "failed" else None
