"""``accunet``: the command line. Heavy packages are imported by the commands, so that ``accunet --help`` is quick."""

from accunet_monai.cli import (  # each registers its commands
    about,
    bundles,
    evaluation,
    pacs,
    pacs_jobs,
    paper,
    planning,
    prediction,
    registry,
    training,
)
from accunet_monai.cli.common import app

__all__ = [
    "about",
    "app",
    "bundles",
    "evaluation",
    "pacs",
    "pacs_jobs",
    "paper",
    "planning",
    "prediction",
    "registry",
    "training",
]
