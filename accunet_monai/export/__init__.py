"""A bundle's network as one file for other programs: TorchScript, ``torch.export`` (pt2) or ONNX.

What is written is the folded network of :func:`accunet_monai.networks.deploy.optimize_for_inference`. The file is
opened again and compared with the bundle's own network before it gets its name. What a lower precision costs in Dice
is measured by the bundle's own ``evaluate`` config.
"""

from accunet_monai.export.cost import Cost
from accunet_monai.export.programs import DESCRIPTION, PRECISIONS, open_program
from accunet_monai.export.run import Export, export_bundle

__all__ = ["DESCRIPTION", "PRECISIONS", "Cost", "Export", "export_bundle", "open_program"]
