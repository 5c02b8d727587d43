"""Training and evaluation on Ignite through MONAI's engines, with MLflow tracking. Needs the extra ``train``."""

from accunet_monai.datasets import decathlon_cases, download_decathlon
from accunet_monai.training.augmentation import BatchAugmentation
from accunet_monai.training.batches import AugmentedBatch
from accunet_monai.training.case_measures import CaseMeasures, EvaluationReport
from accunet_monai.training.distributed import main_first, parallel, start_processes, validation_sampler
from accunet_monai.training.evaluation import CaseDice
from accunet_monai.training.folds import cross_validate
from accunet_monai.training.forward import TrainingForward, uses_scaler
from accunet_monai.training.handlers import (
    CaseTable,
    FinalValidation,
    GradientClip,
    WeightsSaver,
)
from accunet_monai.training.losses import DeepSupervision, SegmentationLoss, make_loss, trained_module
from accunet_monai.training.moving_average import MovingAverage
from accunet_monai.training.progress import RichProgress, training_facts
from accunet_monai.training.repeatable import Repeatable
from accunet_monai.training.resume import TrainingState, check_output_dir, run_training
from accunet_monai.training.sampling import SliceSampler
from accunet_monai.training.schedules import make_schedule
from accunet_monai.training.slices import SliceDataset
from accunet_monai.training.step_times import StepTimes
from accunet_monai.training.stopping import EarlyStop, StopOnNonFinite, Stopped
from accunet_monai.training.tracking import MLflowTracker

__all__ = [
    "AugmentedBatch",
    "BatchAugmentation",
    "CaseDice",
    "CaseMeasures",
    "CaseTable",
    "DeepSupervision",
    "EarlyStop",
    "EvaluationReport",
    "FinalValidation",
    "GradientClip",
    "MLflowTracker",
    "MovingAverage",
    "Repeatable",
    "RichProgress",
    "SegmentationLoss",
    "SliceDataset",
    "SliceSampler",
    "StepTimes",
    "StopOnNonFinite",
    "Stopped",
    "TrainingForward",
    "TrainingState",
    "WeightsSaver",
    "check_output_dir",
    "cross_validate",
    "decathlon_cases",
    "download_decathlon",
    "main_first",
    "make_loss",
    "make_schedule",
    "parallel",
    "run_training",
    "start_processes",
    "trained_module",
    "training_facts",
    "uses_scaler",
    "validation_sampler",
]
