"""MLflow tracking of a training: what was run, on what, how it went, and on which cases it is worse."""

from accunet_monai.training.tracking.outbox import tidy
from accunet_monai.training.tracking.parent import ParentRun
from accunet_monai.training.tracking.runs import TrackingError, close_stale_runs, tracking_uri
from accunet_monai.training.tracking.settings import resolved_config
from accunet_monai.training.tracking.tracker import MLflowTracker

__all__ = [
    "MLflowTracker",
    "ParentRun",
    "TrackingError",
    "close_stale_runs",
    "resolved_config",
    "tidy",
    "tracking_uri",
]
