"""A small real training: a bundle, volumes on disk, MONAI's engines, the tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler

from accunet_monai.networks import ACCUNet
from accunet_monai.training import CaseDice, FinalValidation, MLflowTracker, WeightsSaver
from tests import made_bundle

LABELS = {1: "front", 2: "back"}
SHAPE = (12, 16, 14)


def volume_bundle(folder: Path, base_filters: int = 1) -> Path:
    """A bundle for volumes of any modality and size, without weights."""
    bundle = folder / "tiny_mri"
    (bundle / "configs").mkdir(parents=True)
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "base_filters": base_filters}
    arguments["mlfc_iterations"] = 1
    steps = [
        {"_target_": "accunet_monai.transforms.LoadVolumed", "keys": "image"},
        {"_target_": "accunet_monai.transforms.LoadLabelMapd", "keys": "label", "allow_missing_keys": True},
        {
            "_target_": "monai.transforms.Orientationd", "keys": ["image", "label"], "axcodes": "RAS", "labels": None,
            "allow_missing_keys": True,
        },
        {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "image"},
    ]  # fmt: skip
    sections: dict[str, Any] = {
        "network_def": {"_target_": "accunet_monai.networks.ACCUNet", **arguments},
        "preprocessing": {"_target_": "monai.transforms.Compose", "transforms": steps},
        "inferer": {"_target_": "accunet_monai.inferers.SliceInferer", "spatial_dim": 2, "sw_batch_size": 8},
        "postprocessing": {
            "_target_": "monai.transforms.Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
            "nearest_interp": True,
        },
    }  # fmt: skip
    made_bundle.write_config(bundle, "inference", sections)
    image = {"type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": ["*", "*"]}
    channels = {"0": "background", **{str(label): name for label, name in LABELS.items()}}
    data_format = {"inputs": {"image": image}, "outputs": {"pred": {"channel_def": channels}}}
    made_bundle.write_metadata(bundle, {"version": "0.0.1", "network_data_format": data_format})
    return bundle


def nifti_cases(folder: Path, count: int, shape: tuple[int, int, int] = SHAPE) -> list[dict[str, Any]]:
    """Volumes with two labels; every two cases are of one subject."""
    cases = []
    for number in range(count):
        image, label_map = made_bundle.made_volume(number, shape)
        paths = [folder / kind / f"case_{number:02d}.nii.gz" for kind in ("imagesTr", "labelsTr")]
        for path, array in zip(paths, (image, label_map), strict=True):
            made_bundle.save_volume(path, array)
        names = {"case": f"case_{number:02d}", "subject": f"subject_{number // 2}"}
        cases.append({"image": str(paths[0]), "label": str(paths[1]), **names})
    return cases


class Training:
    """Trainer and evaluator on these cases, tracked; ``run`` trains.

    Args:
        bundle: of :func:`volume_bundle`.
        cases: all of them are trained on and validated on.
        output_dir: of the training.
        epochs: how many.
        tracked: arguments of the tracker; ``None`` trains without one.
    """

    def __init__(
        self,
        bundle: Path,
        cases: list[dict[str, Any]],
        output_dir: Path,
        epochs: int = 2,
        tracked: dict[str, Any] | None = None,
        steps: int = 2,
    ) -> None:
        torch.manual_seed(0)
        parser = ConfigParser(made_bundle.read_config(bundle, "inference"))
        self.network: ACCUNet = parser.get_parsed_content("network_def")
        preprocessing = parser.get_parsed_content("preprocessing")
        dataset = Dataset(cases, preprocessing)
        self.metric = CaseDice(LABELS)
        self.evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(dataset, batch_size=1),
            network=self.network,
            inferer=parser.get_parsed_content("inferer"),
            key_val_metric={"val_mean_dice": self.metric},
            val_handlers=[WeightsSaver(self.network, output_dir)],
        )
        handlers: list[Any] = [ValidationHandler(1, self.evaluator), FinalValidation(self.evaluator)]
        self.tracker = None
        if tracked is not None:
            arguments = {"experiment": "made", "cases": {"training": cases, "validation": cases}, **tracked}
            self.tracker = MLflowTracker(
                evaluator=self.evaluator, metric=self.metric, output_dir=output_dir, bundle_root=bundle, **arguments
            )
            handlers.append(self.tracker)
        batches = [_batch(dataset[number % len(dataset)]) for number in range(steps)]
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=batches,
            network=self.network,
            optimizer=torch.optim.SGD(self.network.parameters(), lr=0.01),
            loss_function=torch.nn.CrossEntropyLoss(),
            train_handlers=handlers,
            decollate=False,
        )

    def run(self) -> str:
        """Train; returns the id of the run, if it is tracked."""
        self.trainer.run()
        return str(self.tracker.run_id) if self.tracker else ""


def _batch(item: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The slices of a volume."""
    image, label = (torch.as_tensor(np.asarray(item[key])) for key in ("image", "label"))
    return {"image": image.permute(3, 0, 1, 2).float(), "label": label[0].permute(2, 0, 1).long()}
