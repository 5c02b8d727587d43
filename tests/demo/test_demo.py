"""What the demo promises, on the average brain that nilearn carries."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from accunet_monai.bundle import WEIGHTS, find_bundle
from accunet_monai.demo.hippocampus import BOX_MM, CENTRE_MM, load_average_brain, segment_box, segment_hippocampi
from accunet_monai.demo.run import HONESTY, run_demo
from accunet_monai.demo.tissue import evaluate_on_average_brain
from accunet_monai.volumes import Volume

ANTERIOR, POSTERIOR = (24, -12, -21.5), (29.5, -30, -10)
"""Centroids of the right hippocampus's parts in MNI space, mm, from the issue that asked for the demo."""


class Recorder:
    """Stands for the predictor: keeps the box it is given, and labels its first voxel."""

    def predict(self, volume: Volume) -> object:
        self.volume = volume
        label_map = np.zeros(volume.shape, np.uint8)
        label_map[0, 0, 0] = 1
        return type("Prediction", (), {"label_map": label_map})()


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_box_is_centred_where_it_should_be(sign: int) -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-98, -134, -72)
    brain = Volume(np.zeros((197, 233, 189), np.float32), affine)
    recorder = Recorder()
    corner, _ = segment_box(recorder, brain, np.array(CENTRE_MM) * (sign, 1, 1))  # type: ignore[arg-type]
    assert recorder.volume.shape == BOX_MM
    np.testing.assert_allclose(recorder.volume.affine_ras[:3, 3], affine[:3, 3] + corner)
    np.testing.assert_allclose(recorder.volume.centre_ras, np.array(CENTRE_MM) * (sign, 1, 1), atol=1.01)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and screen of a demo without training."""
    folder = tmp_path_factory.mktemp("demo")
    console = Console(record=True, width=120)
    run_demo(folder, train=False, pacs=False, console=console)
    return folder, console.export_text()


def test_the_hippocampi_of_the_average_brain_are_where_and_as_large_as_they_are(tmp_path: Path) -> None:
    result = segment_hippocampi(tmp_path, Console(quiet=True))
    for side, sign in (("left", -1), ("right", 1)):
        for name, expected in (("anterior hippocampus", ANTERIOR), ("posterior hippocampus", POSTERIOR)):
            found = np.array(result.centroid_ras[side, name])
            assert np.linalg.norm(found - np.array(expected) * (sign, 1, 1)) <= 5, (side, name, found)
        assert 2.4 <= result.volume_ml[side] <= 4.8
    left, right = result.volume_ml["left"], result.volume_ml["right"]
    assert 2 * abs(left - right) / (left + right) < 0.2


def test_the_demo_leaves_a_label_map_and_a_picture_and_says_what_it_does_not_show(
    demo_folder: tuple[Path, str],
) -> None:
    folder, screen = demo_folder
    brain = load_average_brain()
    written = nib.load(folder / "mni152_hippocampi_seg.nii.gz")
    assert written.shape == brain.shape
    np.testing.assert_allclose(written.affine, brain.affine_ras)
    assert set(np.unique(np.asarray(written.dataobj))) == {0, 1, 2}
    with Image.open(folder / "mni152_hippocampi.png") as picture:
        assert picture.width > 600
    assert HONESTY.split(":")[0] in " ".join(screen.split())


def test_the_shipped_tissue_weights_segment_the_average_brain(tmp_path: Path) -> None:
    result = evaluate_on_average_brain(find_bundle("brain_tissue_t1") / WEIGHTS, tmp_path, "tissue")
    assert result.dice["grey matter"] >= 0.80
    assert result.dice["white matter"] >= 0.80
    assert result.picture.is_file()
