"""MLflow's model registry: trained bundles as versions of a model, a gate before an alias, bundles taken from it."""

from accunet_monai.registry.gate import Gate, promote
from accunet_monai.registry.versions import list_versions, pull, register_run, run_of

__all__ = ["Gate", "list_versions", "promote", "pull", "register_run", "run_of"]
