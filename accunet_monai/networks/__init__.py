"""ACC-UNet for PyTorch and MONAI: the network, its blocks, and its weights' file. Name them by path in configs."""

from accunet_monai.networks.accunet import (
    ACCUNet,
    create_acc_unet,
    create_acc_unet_binary,
    create_acc_unet_multiclass,
    weight_decay_groups,
)
from accunet_monai.networks.blocks import HANCBlock, HANCLayer, ResPath, SqueezeExcitation
from accunet_monai.networks.checkpoint import load_network, load_weights, save_network
from accunet_monai.networks.deploy import optimize_for_inference
from accunet_monai.networks.mlfc import MLFCLayer
from accunet_monai.networks.official import from_official, to_official

__all__ = [
    "ACCUNet",
    "HANCBlock",
    "HANCLayer",
    "MLFCLayer",
    "ResPath",
    "SqueezeExcitation",
    "create_acc_unet",
    "create_acc_unet_binary",
    "create_acc_unet_multiclass",
    "from_official",
    "load_network",
    "load_weights",
    "optimize_for_inference",
    "save_network",
    "to_official",
    "weight_decay_groups",
]
