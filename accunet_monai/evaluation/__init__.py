"""Evaluation of segmentations: measures of each case and label, intervals over subjects, comparisons, pictures, cards.

Rules for labels that are nowhere, and what is averaged over what, are in ``docs/evaluation.md``.
"""

from accunet_monai.evaluation.calibration import Reliability, count_reliability
from accunet_monai.evaluation.comparison import CaseChange, Comparison, compare
from accunet_monai.evaluation.console import print_cases, print_comparison, print_summary
from accunet_monai.evaluation.measures import COLUMNS, MEASURES, Measure, Row, means_by_label, measure_case
from accunet_monai.evaluation.plots import bland_altman, label_boxes, reliability_diagram
from accunet_monai.evaluation.report import draw_case, write_report
from accunet_monai.evaluation.resampling import Estimate, bootstrap
from accunet_monai.evaluation.summary import Summary, summarise, worst_first
from accunet_monai.evaluation.tables import read_rows, write_rows

__all__ = [
    "COLUMNS",
    "MEASURES",
    "CaseChange",
    "Comparison",
    "Estimate",
    "Measure",
    "Reliability",
    "Row",
    "Summary",
    "bland_altman",
    "bootstrap",
    "compare",
    "count_reliability",
    "draw_case",
    "label_boxes",
    "means_by_label",
    "measure_case",
    "print_cases",
    "print_comparison",
    "print_summary",
    "read_rows",
    "reliability_diagram",
    "summarise",
    "worst_first",
    "write_report",
    "write_rows",
]
