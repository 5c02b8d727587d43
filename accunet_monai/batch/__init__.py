"""Segment many files and DICOM series: read ahead, run the network, write; failures reported and passed over.

A run can be stopped at any moment and started again: what is done is recognised by content and is not done twice.
"""

from accunet_monai.batch.explain import explain_memory
from accunet_monai.batch.pipeline import overlapped
from accunet_monai.batch.records import Record, Records
from accunet_monai.batch.report import BatchReport
from accunet_monai.batch.results import OutputFormat, write_overlay
from accunet_monai.batch.run import predict_files
from accunet_monai.batch.sources import Source
from accunet_monai.batch.stages import PredictOptions

__all__ = [
    "BatchReport",
    "OutputFormat",
    "PredictOptions",
    "Record",
    "Records",
    "Source",
    "explain_memory",
    "overlapped",
    "predict_files",
    "write_overlay",
]
