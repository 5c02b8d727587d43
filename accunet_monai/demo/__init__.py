"""``accunet demo``: the whole of it on data that packages carry, without network. Needs the extra ``demo``."""

from accunet_monai.demo.hippocampus import segment_hippocampi
from accunet_monai.demo.run import run_demo

__all__ = ["run_demo", "segment_hippocampi"]
