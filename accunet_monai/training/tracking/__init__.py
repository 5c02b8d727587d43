"""MLflow tracking of a training: what was run, on what, how it went, and on which cases it is worse."""

from accunet_monai.training.tracking.outbox import tidy
from accunet_monai.training.tracking.runs import (
    TrackingError,
    close_stale_runs,
    finish_run,
    start_parent_run,
    tracking_uri,
)
from accunet_monai.training.tracking.settings import resolved_config
from accunet_monai.training.tracking.tracker import MLflowTracker

__all__ = [
    "MLflowTracker",
    "TrackingError",
    "close_stale_runs",
    "finish_run",
    "resolved_config",
    "start_parent_run",
    "tidy",
    "tracking_uri",
]
