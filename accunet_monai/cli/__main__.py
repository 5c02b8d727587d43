"""``python -m accunet_monai.cli``."""

from accunet_monai.cli import app

app()
