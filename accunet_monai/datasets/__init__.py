"""Labelled datasets on disk: their cases, splits by subject, and digests; no torch and no MONAI."""

from accunet_monai.datasets.cases import Case, case_name, decathlon_cases
from accunet_monai.datasets.counting import count_labels
from accunet_monai.datasets.digest import content_digest, dataset_digest
from accunet_monai.datasets.download import download_decathlon
from accunet_monai.datasets.layouts import Listing, labelled_cases, list_dataset
from accunet_monai.datasets.pictures import PICTURE_SETS, picture_cases, picture_set, read_picture_case
from accunet_monai.datasets.splits import Split, cases_for_folds, folds_by_subject, read_split

__all__ = [
    "PICTURE_SETS",
    "Case",
    "Listing",
    "Split",
    "case_name",
    "cases_for_folds",
    "content_digest",
    "count_labels",
    "dataset_digest",
    "decathlon_cases",
    "download_decathlon",
    "folds_by_subject",
    "labelled_cases",
    "list_dataset",
    "picture_cases",
    "picture_set",
    "read_picture_case",
    "read_split",
]
