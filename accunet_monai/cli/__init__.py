"""``accunet``: the command line. Heavy packages are imported by the commands, so that ``accunet --help`` is quick."""

from accunet_monai.cli import about, bundles, prediction, training  # each registers its commands
from accunet_monai.cli.common import app

__all__ = ["about", "app", "bundles", "prediction", "training"]
