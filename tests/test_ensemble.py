"""Several weights or bundles: their probabilities are averaged, and no volume of them is held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from accunet_monai.bundle import load_bundle
from accunet_monai.bundle.ensemble import AveragedNetworks
from accunet_monai.bundle.postprocessing import entropy, with_uncertainty
from accunet_monai.errors import BundleError, NetworkError
from accunet_monai.inferers import SliceInferer
from accunet_monai.networks.checkpoint import load_network, save_network
from accunet_monai.volumes import Volume
from tests import made_bundle
from tests.batch.tiny import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def folds(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Weights of three networks that disagree."""
    folder = tmp_path_factory.mktemp("folds")
    paths = []
    for seed in range(3):
        network = load_network(bundle / "models" / "model.safetensors")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            network.head.weight += torch.randn(network.head.weight.shape, generator=generator)
            logits = network(torch.randn(1, 1, 32, 32, generator=generator))
            scale = 3 / logits.std()  # neither sure nor at a loss
            network.head.weight *= scale
            network.head.bias.copy_(scale * (network.head.bias - logits.mean((0, 2, 3))))
        paths.append(save_network(network, folder / f"fold_{seed}.safetensors"))
    return paths


def image() -> Volume:
    return Volume(made_bundle.made_volume(0, (20, 24, 5))[0].astype(np.float32), np.eye(4))


def probabilities_of(bundle: Path, weights: Path) -> Tensor:
    predictor = load_bundle(bundle, weights)
    data = predictor.preprocessing({"image": image()})["image"]
    inferer = SliceInferer(spatial_dim=2, output="probabilities")
    with torch.inference_mode():
        return inferer(data[None].as_tensor().double(), predictor.network.double())[0]


def test_the_label_map_is_that_of_the_averaged_probabilities(bundle: Path, folds: list[Path]) -> None:
    mean = torch.stack([probabilities_of(bundle, fold) for fold in folds]).mean(0)
    prediction = load_bundle(bundle, folds).predict(image(), uncertainty=True)
    clear = (mean.topk(2, 0).values.diff(dim=0).abs() > 1e-4)[0].numpy()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(prediction.label_map[clear], mean.argmax(0).numpy()[clear])
    single = [load_bundle(bundle, fold).predict(image()).label_map for fold in folds]
    assert all((prediction.label_map != other).any() for other in single)  # it is none of the members
    expected = entropy(mean[None])[0, 0].numpy()
    assert prediction.uncertainty is not None
    np.testing.assert_allclose(prediction.uncertainty, expected, atol=0.5 / 255 + 1e-3)


def test_one_member_many_times_changes_nothing(bundle: Path, folds: list[Path]) -> None:
    single = load_bundle(bundle, folds[0])
    several = load_bundle(bundle, [folds[0]] * 3)
    assert np.count_nonzero(single.predict(image()).label_map != several.predict(image()).label_map) <= 2
    assert several.members == tuple((bundle, folds[0]) for _ in range(3))
    assert several.digest != single.digest


def test_bundles_that_differ_in_their_network_only(bundle: Path, folds: list[Path], tmp_path: Path) -> None:
    wide = made_bundle.copied_bundle(bundle, tmp_path)
    config = made_bundle.read_config(wide, "inference")
    config["network_def"]["mlfc_iterations"] = 2
    made_bundle.write_config(wide, "inference", config)
    made_bundle.random_weights(wide, torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3)))
    mean = (
        probabilities_of(bundle, bundle / "models" / "model.safetensors")
        + probabilities_of(wide, wide / "models" / "model.safetensors")
    ) / 2
    found = load_bundle([bundle, wide]).predict(image()).label_map
    clear = (mean.topk(2, 0).values.diff(dim=0).abs() > 1e-4)[0].numpy()
    np.testing.assert_array_equal(found[clear], mean.argmax(0).numpy()[clear])
    config["inferer"]["spatial_dim"] = 1
    made_bundle.write_config(wide, "inference", config)
    for arguments in (([bundle, wide], None), ([bundle, bundle], folds[0])):
        with pytest.raises(BundleError) as caught:
            load_bundle(*arguments)
        assert caught.value.code == "BUNDLE_ENSEMBLE"
    with pytest.raises(NetworkError, match="WEIGHTS_M"):
        load_bundle(bundle, [folds[0], tmp_path / "none.safetensors"])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_softmax_and_sigmoid_of_the_average_are_the_averages(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(3, 2, channels, 4, 4, generator=generator)

    class Fixed(nn.Module):
        def __init__(self, values: Tensor) -> None:
            super().__init__()
            self.values = values

        def forward(self, x: Tensor) -> Tensor:
            return self.values

    found = AveragedNetworks([Fixed(values) for values in logits])(torch.zeros(2, 1, 4, 4))
    both = (torch.sigmoid, torch.sigmoid) if channels == 1 else (lambda x: x.softmax(1), lambda x: x.softmax(2))
    torch.testing.assert_close(both[0](found), both[1](logits).mean(0), atol=1e-6, rtol=1e-5)


def test_certain_and_opposed_networks_stay_finite() -> None:
    class Sure(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, x: Tensor) -> Tensor:
            return self.sign * torch.full((1, 1, 2, 2), 1e4)

    for signs, expected in (((1, 1), 1.0), ((-1, -1), 0.0), ((1, -1), 0.5)):
        logits = AveragedNetworks([Sure(sign) for sign in signs])(torch.zeros(1, 1, 2, 2))
        assert torch.isfinite(logits).all()
        assert torch.sigmoid(logits).unique().tolist() == pytest.approx([expected])


def test_folding_gives_identical_label_maps_and_a_network_of_the_callers_own_is_used(bundle: Path) -> None:
    predictor = load_bundle(bundle)
    folded = predictor.predict(image()).label_map
    assert predictor._folded is not predictor.network
    plain = load_bundle(bundle)
    calls = []

    def own(x: Tensor) -> Tensor:
        calls.append(len(x))
        return plain._loaded(x)

    plain.network = own  # type: ignore[assignment]
    np.testing.assert_array_equal(plain.predict(image()).label_map, folded)
    assert sum(calls) == 5
    predictor.network = own  # type: ignore[assignment]
    predictor.predict(image())
    assert sum(calls) == 10


# ----------------------------------------------------------------------------------------------------------------------
# Uncertainty


def test_entropy_by_hand() -> None:
    quarter = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    one = torch.tensor([0.0, 0.25, 0.5, 1.0]).reshape(1, 1, 4)
    np.testing.assert_allclose(entropy(one)[0, 0], [0, quarter, 1, 0], atol=1e-6)
    three = torch.tensor([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]).T[None]
    np.testing.assert_allclose(entropy(three)[0, 0], [0, 1, np.log(2) / np.log(3)], atol=1e-6)
    regions = torch.tensor([[0.25, 0.5], [0.25, 0.0]]).T[None]
    np.testing.assert_allclose(entropy(regions, regions=True)[0, 0], [1, quarter], atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"views": ["axial", "coronal"]}, {"mirror_axes": [0]}, {"roi_size": [16, 16]}]
)
def test_packed_with_the_label_map_is_what_probabilities_say(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 4, 3, padding=1)
    volume = torch.randn(2, 1, 20, 18, 7)
    with torch.inference_mode():
        inferer = SliceInferer(spatial_dim=2, sw_batch_size=3, **settings)  # type: ignore[arg-type]
        labels, shares = with_uncertainty(inferer, volume, network)
        assert torch.equal(labels, inferer(volume, network))
        wanted = SliceInferer(spatial_dim=2, output="probabilities", **settings)(volume, network)  # type: ignore[arg-type]
        torch.testing.assert_close(shares, entropy(wanted), atol=0.5 / 255 + 1e-5, rtol=0)
        for output in ("probabilities", "logits"):
            if output == "logits" and settings.get("views"):
                continue
            other = SliceInferer(spatial_dim=2, output=output, **settings)  # type: ignore[arg-type]
            found, shares = with_uncertainty(other, volume, network)
            assert found.shape == wanted.shape
            if not settings.get("mirror_axes"):
                torch.testing.assert_close(shares, entropy(wanted), atol=1e-5, rtol=0)


def test_pictures_have_one_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    predictor = load_bundle(made_bundle.picture_bundle(tmp_path))
    found = predictor.predict(tmp_path / "a.png", uncertainty=True)
    assert found.uncertainty is not None
    logits = predictor.network(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    np.testing.assert_allclose(found.uncertainty, entropy(logits.detach().softmax(1))[0, 0], atol=1e-3)
    np.testing.assert_array_equal(found.label_map, predictor.predict(tmp_path / "a.png").label_map)


def test_the_map_lies_on_the_images_grid(bundle: Path, folds: list[Path]) -> None:
    predictor = load_bundle(bundle, folds[0])
    upright = predictor.predict(image(), uncertainty=True)
    turned = predictor.predict(image().reoriented("PIL"), uncertainty=True)
    assert upright.uncertainty is not None
    assert turned.uncertainty is not None
    assert turned.uncertainty.shape == image().reoriented("PIL").shape
    assert isinstance(turned.image, Volume)
    back = Volume(turned.uncertainty, turned.image.affine_ras).reoriented("RAS").array
    np.testing.assert_allclose(back, upright.uncertainty, atol=0.01)
    assert np.ptp(back) > 0.05
    np.testing.assert_array_equal(upright.label_map, predictor.predict(image()).label_map)
