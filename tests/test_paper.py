"""The published recipe: each config trains and tests on made pictures, and what comes out stands beside the paper."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, create_workflow
from PIL import Image
from typer.testing import CliRunner

from accunet_monai.bundle import LITERAL_SECTIONS, load_bundle, read_literal_sections
from accunet_monai.cli import app
from accunet_monai.datasets import PICTURE_SETS, picture_cases, read_picture_case
from accunet_monai.errors import DatasetError
from accunet_monai.evaluation import measure_case, write_rows
from accunet_monai.evaluation.paper import PUBLISHED_DICE, paper_results
from accunet_monai.networks import ACCUNet
from accunet_monai.networks.checkpoint import save_network
from accunet_monai.training import SliceSampler, make_loss
from accunet_monai.training.pictures import LoadPictureCased, PictureDataset
from accunet_monai.workflow import run_config
from tests import made_bundle
from tests.datasets.made_pictures import MAKERS

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "configs" / "paper"
BUNDLE = PAPER / "pictures"
SIZE = 32

pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader"),  # an optional reader that MONAI registers anyway
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),  # MONAI: configs are trusted; these are ours
]


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def small_bundle(folder: Path, width: int = 2) -> Path:
    """The bundle with a narrow network on small pictures."""
    bundle = folder / "pictures"
    shutil.copytree(BUNDLE, bundle)
    for name in ("train", "inference"):
        config = made_bundle.read_config(bundle, name)
        config["network_def"] |= {"base_filters": width, "mlfc_iterations": 1}
        config["preprocessing"]["transforms"][1]["spatial_size"] = [SIZE, SIZE]
        made_bundle.write_config(bundle, name, config)
    return bundle


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all trainings here, with one database: making one takes longer than a training."""
    return tmp_path_factory.mktemp("runs")


def train(folder: Path, runs: Path, name: str, dataset: Path, width: int = 2, **values: Any) -> Any:
    """Train and test as the command line does."""
    values = {"dataset_dir": str(dataset), "runs_dir": str(runs), "device": "cpu", **values}
    return run_config(small_bundle(folder, width), "train", values, (PAPER / f"{name}.yaml",))


def test_there_is_a_config_for_each_set() -> None:
    assert {path.stem for path in PAPER.glob("*.yaml")} == set(PICTURE_SETS) == set(PUBLISHED_DICE)


def test_literal_sections_are_literal_and_equal() -> None:
    train_config, inference = (made_bundle.read_config(BUNDLE, name) for name in ("train", "inference"))
    assert {name: train_config[name] for name in LITERAL_SECTIONS} == read_literal_sections(BUNDLE)
    assert inference.keys() == set(LITERAL_SECTIONS)


@pytest.mark.parametrize("name", PICTURE_SETS)
def test_each_config_trains_and_tests_on_its_layout(name: str, runs: Path, tmp_path: Path) -> None:
    dataset = MAKERS[name](tmp_path / "data")
    workflow = train(tmp_path, runs, name, dataset, batch_size=3, max_epochs=1, split=1)
    assert workflow.trainer.state.iteration == (8 if name == "glas" else 6) // 3
    results = runs / "paper" / name / "split_1"
    with (results / "test" / "cases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [case["case"] for case in picture_cases(name, dataset, "test", 1)]
    found = next(result for result in paper_results(runs / "paper") if result.name == name)
    assert found.splits[1].pictures == len(rows) == (4 if name == "glas" else 2)
    assert found.splits[1].width == 2
    worst = np.asarray(Image.open(next((results / "test" / "worst").glob("1_*.png"))))
    assert worst.mean() > 40  # the picture is to be seen, not only the outline
    assert found.mean == pytest.approx(100 * np.mean([float(row["dice"]) for row in rows]))


def test_the_loss_falls_and_the_weights_predict_as_they_were_tested(runs: Path, tmp_path: Path) -> None:
    dataset = MAKERS["clinicdb"](tmp_path / "data", count=40, size=SIZE, ending="png")
    workflow = train(
        tmp_path, runs, "clinicdb", dataset, learning_rate=0.01, batch_size=4, max_epochs=4, val_interval=4
    )
    results = runs / "paper" / "clinicdb" / "split_0"
    with (results / "test" / "cases.csv").open(newline="", encoding="utf-8") as file:
        dice = {row["case"]: float(row["dice"]) for row in csv.DictReader(file)}
    cases = {case["case"]: read_picture_case(case) for case in picture_cases("clinicdb", dataset, "test")}
    image = torch.stack([torch.from_numpy(pixels) / 255 for pixels, _ in cases.values()])
    mask = torch.stack([torch.from_numpy(one).long() for _, one in cases.values()])
    fresh = ACCUNet(2, 3, 1, base_filters=2, mlfc_iterations=1)
    with torch.no_grad():  # batch norms as in training: their running statistics are slower than 24 iterations
        before, after = (make_loss("dice_bce")(one.train()(image), mask) for one in (fresh, workflow.trainer.network))
    assert after < 0.9 * before
    predictor = load_bundle(tmp_path / "pictures", weights=results / "best.safetensors")
    name = max(dice, key=lambda case: dice[case])
    (path,) = (case["image"] for case in picture_cases("clinicdb", dataset, "test") if case["case"] == name)
    found, reference = predictor.predict(path).label_map, cases[name][1][0]
    overlap = 2 * (found & reference).sum() / (found.sum() + reference.sum())
    assert overlap == pytest.approx(dice[name], abs=0.02)


def test_a_picture_of_any_size_gets_a_mask_of_its_size(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path)
    save_network(ACCUNet(2, 3, 1, base_filters=2, mlfc_iterations=1), bundle / "models" / "model.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (45, 61, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert load_bundle(bundle).predict(tmp_path / "a.png").label_map.shape == (45, 61)


# ----------------------------------------------------------------------------------------------------------------------
# The recipe, as published


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> ConfigParser:
    """The shipped config as it is, on pictures that lie there; nothing is run."""
    folder = tmp_path_factory.mktemp("paper")
    MAKERS["glas"](folder / "data", count=15)
    files = [str(BUNDLE / "configs" / "train.yaml"), str(PAPER / "glas.yaml")]
    values = {"dataset_dir": str(folder / "data"), "runs_dir": str(folder / "runs"), "device": "cpu"}
    meta = {"meta_file": str(BUNDLE / "configs" / "metadata.json")}
    logging = {"logging_file": str(BUNDLE / "configs" / "logging.conf")}
    workflow: Any = create_workflow(config_file=files, workflow_type="train", **meta, **logging, **values)
    workflow.initialize()
    assert workflow.check_properties() == []
    parser: ConfigParser = workflow.parser
    return parser


def test_network_and_optimiser_are_the_published_ones(parser: ConfigParser) -> None:
    network, optimizer = (parser.get_parsed_content(name) for name in ("network", "train#optimizer"))
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == 16.77
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (1e-3, 0, len(list(network.parameters())))
    trainer = parser.get_parsed_content("train#trainer")
    assert (trainer.state.max_epochs, parser.get("early_stopping"), parser.get("seed")) == (1000, 100, 2)
    (batch,) = parser.get_parsed_content("train#dataloader")
    assert batch["image"].shape == (12, 3, 224, 224)


def test_the_loss_is_half_dice_and_half_cross_entropy(parser: ConfigParser) -> None:
    loss = parser.get_parsed_content("train#loss")
    logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    label = (logits + torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)) > 0).long()
    found = torch.sigmoid(logits)
    dice = 2 * (found * label).sum() / (found.sum() + label.sum())
    cross_entropy = -(label * found.log() + (1 - label) * (1 - found).log()).mean()
    torch.testing.assert_close(loss(logits, label), (1 - dice) / 2 + cross_entropy / 2, rtol=1e-5, atol=1e-6)


def test_learning_rates_restart_every_ten_epochs(parser: ConfigParser) -> None:
    schedule = parser.get_parsed_content("train#lr_scheduler")
    per_epoch = len(parser.get_parsed_content("train#dataloader"))
    weight = torch.nn.Parameter(torch.zeros(1))
    published = torch.optim.Adam([weight], lr=1e-3)
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(published, T_0=10, eta_min=1e-4)
    for epoch in range(25):
        rate = 1e-3 * schedule.lr_lambdas[0](epoch * per_epoch)
        assert rate == pytest.approx(published.param_groups[0]["lr"])
        published.step()
        restarts.step()


def test_augmentation_flips_and_turns_and_leaves_colours_alone(parser: ConfigParser) -> None:
    augmentation = parser.get_parsed_content("train#augmentation")
    label = torch.zeros(64, 1, 16, 16)
    label[:, :, :8, :8] = 1
    image = torch.full((64, 3, 16, 16), 0.25) + 0.5 * label
    changed, moved = augmentation(image, label, draw=0)
    assert float(changed.min()) >= 0.25 - 1e-6
    assert float(changed.max()) <= 0.75 + 1e-6
    corners = {tuple(one[0, [2, 2, -3, -3], [2, -3, 2, -3]].tolist()) for one in moved}
    assert len(corners) == 4  # either axis is flipped, or both, or none
    straight = [one for one in moved if any(torch.equal(one, label[0].flip(axes)) for axes in ([], [1], [2], [1, 2]))]
    assert 16 < len(straight) < 48  # half of them are not turned


# ----------------------------------------------------------------------------------------------------------------------
# The dataset


def dataset_of(folder: Path, size: int = SIZE) -> PictureDataset:
    cases = picture_cases("clinicdb", MAKERS["clinicdb"](folder, size=16))
    parts = yaml.safe_load((BUNDLE / "configs" / "inference.yaml").read_text(encoding="utf-8"))["preprocessing"]
    parts["transforms"][1]["spatial_size"] = [size, size]
    steps = ConfigParser({"steps": parts["transforms"][1:]}).get_parsed_content("steps")
    from monai.transforms import Compose

    return PictureDataset(cases, Compose([LoadPictureCased("clinicdb"), *steps]))


def test_pictures_are_resized_linearly_and_masks_to_the_nearest(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    cases = picture_cases("clinicdb", tmp_path)
    for number in (0, 3):
        item, (pixels, mask) = dataset[number], read_picture_case(cases[number])
        assert item["case"] == cases[number]["case"]
        for channel in range(3):  # Pillow interpolates the same way where it enlarges
            expected = Image.fromarray(pixels[channel]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(item["image"][channel], np.asarray(expected) / 255, atol=1e-5)
        np.testing.assert_array_equal(item["label"][0], mask[0].repeat(2, 0).repeat(2, 1))


def test_a_resumed_epoch_draws_the_same_batches(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    sampler = SliceSampler(dataset, batch_size=2, seed=2)

    def batches(epoch: int, skip: int) -> list[tuple[list[str], list[int]]]:
        sampler.set_epoch(epoch, skip)
        loader: Any = torch.utils.data.DataLoader(dataset, batch_sampler=sampler)
        return [(batch["case"], batch["draw"].tolist()) for batch in loader]

    whole = batches(3, 0)
    assert batches(3, 2) == whole[2:]
    assert whole != batches(4, 0)
    assert sorted(name for names, _ in whole for name in names) == sorted(case["case"] for case in dataset.data)


# ----------------------------------------------------------------------------------------------------------------------
# The table


def make_result(folder: Path, name: str, split: int, overlaps: list[int], width: int | None = None) -> None:
    """Cases of 10 pixels of which so many are found and none besides: Dice 2 n / (n + 10)."""
    rows = []
    for number, overlap in enumerate(overlaps):
        reference, prediction = np.zeros((4, 10), dtype=np.uint8), np.zeros((4, 10), dtype=np.uint8)
        reference[1], prediction[1, :overlap] = 1, 1
        if overlap == 0:
            reference[:] = 0
        rows += measure_case(prediction, reference, (1, 1), {1: "foreground"}, case=f"{number}")
    results = folder / name / f"split_{split}"
    (results / "test").mkdir(parents=True)
    write_rows(rows, results / "test" / "cases.csv")
    if width is not None:
        save_network(ACCUNet(2, 3, 1, base_filters=width, mlfc_iterations=0), results / "best.safetensors")


def test_the_table_has_means_of_means_and_says_what_is_otherwise(tmp_path: Path) -> None:
    make_result(tmp_path, "glas", 0, [10, 5, 0], width=1)  # Dice 1, 2/3, and one that counts nowhere
    make_result(tmp_path, "glas", 1, [10])
    make_result(tmp_path, "covid", 0, [5] * 20)
    results = {result.name: result for result in paper_results(tmp_path)}
    assert list(results) == list(PICTURE_SETS)
    glas = results["glas"]
    assert glas.mean == pytest.approx((250 / 3 + 100) / 2)
    assert glas.spread == pytest.approx((100 - 250 / 3) / 2**0.5)
    assert glas.difference == pytest.approx(glas.mean - 88.61)
    assert glas.splits[0].empty == 1
    assert glas.differs_by() == ["2 of 3 splits", "3, 1 test pictures for 80", "width 1, ? for 32"]
    assert np.isnan(results["covid"].spread)
    assert results["covid"].differs_by() == ["1 of 3 splits", "width ? for 32"]
    printed = CliRunner().invoke(app, ["paper-table", str(tmp_path)])
    assert printed.exit_code == 0, printed.output
    assert "91.67 ± 11.79" in printed.stdout
    assert "66.67 ± –" in printed.stdout
    assert "-7.32" in printed.stdout
    assert "COVID, otherwise than published: 1 of 3 splits, width ? for 32\n" in printed.stdout
    for published in PUBLISHED_DICE.values():
        assert f"{published:.2f}" in printed.stdout


def test_three_splits_of_the_published_width_differ_by_nothing(tmp_path: Path) -> None:
    for split in range(3):
        make_result(tmp_path, "covid", split, [9] * 20, width=32 if split == 0 else None)
        if split:
            shutil.copy(tmp_path / "covid/split_0/best.safetensors", tmp_path / f"covid/split_{split}")
    (covid,) = (result for result in paper_results(tmp_path) if result.splits)
    assert covid.differs_by() == []
    assert covid.spread == 0


def test_no_results_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        paper_results(tmp_path)
    assert caught.value.code == "TABLE_MISSING"
    assert CliRunner().invoke(app, ["paper-table", str(tmp_path / "nowhere")]).exit_code == 1
