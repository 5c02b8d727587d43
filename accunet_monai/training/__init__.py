"""Training and evaluation on Ignite through MONAI's engines, with MLflow tracking. Needs the extra ``train``."""

from accunet_monai.training.augmentation import BatchAugmentation
from accunet_monai.training.data import AugmentedBatch, SliceBatches, SliceDataset, decathlon_cases, download_decathlon
from accunet_monai.training.evaluation import CaseDice
from accunet_monai.training.handlers import (
    CaseTable,
    FinalValidation,
    GradientClip,
    RichProgress,
    StopOnNonFinite,
    WeightsSaver,
)
from accunet_monai.training.tracking import MLflowTracker

__all__ = [
    "AugmentedBatch",
    "BatchAugmentation",
    "CaseDice",
    "CaseTable",
    "FinalValidation",
    "GradientClip",
    "MLflowTracker",
    "RichProgress",
    "SliceBatches",
    "SliceDataset",
    "StopOnNonFinite",
    "WeightsSaver",
    "decathlon_cases",
    "download_decathlon",
]
