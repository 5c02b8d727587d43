"""Out of memory, autocast, networks with several outputs, and what labels are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from accunet_monai.inferers import SliceInferer
from accunet_monai.inferers.labels import LabelRule

VOLUME = torch.randn(1, 1, 10, 4, 5, generator=torch.Generator().manual_seed(0))


class Limited:
    """A network whose memory runs out with more than ``most`` windows; notes the size of each call."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: list[int] = []

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("tried to allocate")
        return torch.cat([x, -x], 1)


# ----------------------------------------------------------------------------------------------------------------------
# Out of memory


def test_a_batch_that_is_too_large_is_halved_and_stays_so(caplog: pytest.LogCaptureFixture) -> None:
    network = Limited(2)
    inferer = SliceInferer(sw_batch_size=9)
    result = inferer(VOLUME, network)
    assert network.calls == [9, 4, 2, 2, 2, 2, 2]
    assert torch.equal(result, SliceInferer(sw_batch_size=9)(VOLUME, Limited(100)))
    assert inferer.sw_batch_size == 9  # the next volume may be smaller
    assert [record.args for record in caplog.records] == [(9, 4), (4, 2)]


def test_later_batches_are_cut_at_the_smaller_size() -> None:
    network = Limited(3)
    SliceInferer(sw_batch_size=4)(VOLUME, network)
    assert network.calls == [4, 2, 2, 2, 2, 2]


def test_one_window_that_is_too_large_is_an_error_with_advice() -> None:
    network = Limited(0)
    with pytest.raises(torch.OutOfMemoryError, match=r"tried to allocate.*smaller roi_size") as caught:
        SliceInferer(sw_batch_size=4)(VOLUME, network)
    assert network.calls == [4, 2, 1]
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("settings", [{}, {"roi_size": (3, 3)}, {"mirror_axes": (1, 2)}], ids=str)
def test_a_network_may_use_the_memory_of_its_output_again(settings: dict[str, Any]) -> None:
    buffer = torch.empty(9, 2, 4, 5)

    def network(x: Tensor) -> Tensor:  # as a CUDA graph does
        if len(x) > 3:
            raise torch.OutOfMemoryError("tried to allocate")
        outputs = buffer[: len(x), :, : x.shape[2], : x.shape[3]]
        outputs.copy_(torch.cat([x, -x], 1))
        return outputs

    expected = SliceInferer(output="logits", **settings)(VOLUME, lambda x: torch.cat([x, -x], 1))
    torch.testing.assert_close(SliceInferer(output="logits", sw_batch_size=5, **settings)(VOLUME, network), expected)


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    calls = []

    def network(x: Tensor) -> Tensor:
        calls.append(len(x))
        raise RuntimeError("another reason")

    with pytest.raises(RuntimeError, match="another reason"):
        SliceInferer(sw_batch_size=4)(VOLUME, network)
    assert calls == [4]


# ----------------------------------------------------------------------------------------------------------------------
# Autocast


def precision_of_product(seen: list[torch.dtype]) -> Any:
    def network(x: Tensor) -> Tensor:
        product = x @ torch.eye(x.shape[-1])
        seen.append(product.dtype)
        return product

    return network


@pytest.mark.parametrize("amp", ["bfloat16", torch.bfloat16])
def test_autocast_of_its_own(amp: Any) -> None:
    seen: list[torch.dtype] = []
    SliceInferer(amp=amp)(VOLUME, precision_of_product(seen))
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    SliceInferer()(VOLUME, precision_of_product(seen))
    assert set(seen) == {torch.float32}


def test_autocast_around_the_call_is_left_alone_and_results_are_float32() -> None:
    seen: list[torch.dtype] = []
    with torch.autocast("cpu", torch.bfloat16):
        result = SliceInferer(output="probabilities")(VOLUME, precision_of_product(seen))
    assert set(seen) == {torch.bfloat16}
    assert result.dtype == torch.float32


# ----------------------------------------------------------------------------------------------------------------------
# Several outputs


def two(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([x, -x], 1), torch.cat([x, 2 * x, -x], 1)


def named(x: Tensor) -> dict[str, Tensor]:
    first, second = two(x)
    return {"out": first, "aux": second}


def test_all_outputs_come_back_as_they_are_structured() -> None:
    pair = SliceInferer(output="logits")(VOLUME, two)
    assert isinstance(pair, tuple)
    for result, expected in zip(pair, two(VOLUME[0].movedim(1, 0)), strict=True):
        assert torch.equal(result[0].movedim(1, 0), expected)
    mapping = SliceInferer(output="probabilities", sw_batch_size=3)(MetaTensor(VOLUME), named)
    assert {key: tuple(value.shape) for key, value in mapping.items()} == {
        "out": (1, 2, 10, 4, 5),
        "aux": (1, 3, 10, 4, 5),
    }
    assert all(isinstance(value, MetaTensor) for value in mapping.values())
    torch.testing.assert_close(mapping["out"].as_tensor(), torch.softmax(pair[0], 1))


def test_a_label_map_is_made_of_the_first_or_of_the_one_that_is_named() -> None:
    def with_smaller_outputs(x: Tensor) -> list[Tensor]:  # deep supervision: the others are never looked at
        return [two(x)[0], x[:, :, ::2, ::2]]

    first = SliceInferer()(VOLUME, lambda x: two(x)[0])
    second = SliceInferer()(VOLUME, lambda x: two(x)[1])
    assert not torch.equal(first, second)
    assert torch.equal(SliceInferer()(VOLUME, two), first)
    assert torch.equal(SliceInferer()(VOLUME, with_smaller_outputs), first)
    assert torch.equal(SliceInferer(output_key=1)(VOLUME, two), second)
    assert torch.equal(SliceInferer(output_key=-1)(VOLUME, two), second)
    assert torch.equal(SliceInferer(output_key="aux")(VOLUME, named), second)
    assert torch.equal(SliceInferer()(VOLUME, lambda x: {"only": two(x)[1]}), second)
    logits = SliceInferer(output="logits", output_key="aux")(VOLUME, named)
    assert torch.equal(logits, SliceInferer(output="logits")(VOLUME, two)[1])


def test_outputs_that_are_not_there_or_not_clear() -> None:
    with pytest.raises(ValueError, match=r"outputs \['out', 'aux'\]: say with output_key"):
        SliceInferer()(VOLUME, named)
    with pytest.raises(ValueError, match=r"output_key='head' is not among the network's outputs \['out', 'aux'\]"):
        SliceInferer(output_key="head")(VOLUME, named)
    with pytest.raises(ValueError, match="output_key=2 is no position among the network's 2 outputs"):
        SliceInferer(output_key=2)(VOLUME, two)
    with pytest.raises(ValueError, match="output_key='aux' is no position"):
        SliceInferer(output_key="aux")(VOLUME, two)


def test_a_condition_is_cut_and_mirrored_with_the_volume() -> None:
    condition = VOLUME + 100
    seen = []

    def network(x: Tensor, beside: Tensor, *, scale: float) -> Tensor:
        seen.append(torch.equal(beside, x + 100))
        return x * scale

    settings: dict[str, Any] = {"roi_size": (3, 3), "context_slices": 0, "mirror_axes": (1, 2), "output": "logits"}
    result = SliceInferer(sw_batch_size=5, **settings)(VOLUME, network, condition=condition, scale=2.0)
    assert all(seen)
    torch.testing.assert_close(result, 2 * VOLUME)
    given = []
    SliceInferer()(VOLUME, lambda x, **kwargs: given.append(kwargs) or x, condition="words")
    assert given[0] == {"condition": "words"}  # no tensor: an argument like any other


def test_gradients_flow_to_logits_and_are_not_kept_for_labels() -> None:
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    logits = SliceInferer(output="logits", roi_size=(3, 3), sw_batch_size=4)(VOLUME, network)
    logits.sum().backward()
    assert network.weight.grad is not None
    assert float(network.weight.grad.abs().sum()) > 0
    assert not SliceInferer(output="probabilities")(VOLUME, network).requires_grad


# ----------------------------------------------------------------------------------------------------------------------
# Labels


def test_regions_are_written_in_order_into_one_label_map() -> None:
    # columns: nothing, whole tumour, with core, with enhancing part, enhancing part alone
    logits = torch.tensor([[-1, 1, 1, 1, -1], [-1, -1, 1, 1, -1], [-1, -1, -1, 1, 1.0]])[:, None, :]
    volume = torch.zeros(1, 1, 2, 1, 5)

    def network(x: Tensor) -> Tensor:
        return logits.expand(len(x), -1, -1, -1)

    for regions, expected in (((1, 2, 3), [0, 1, 2, 3, 3]), ((3, 2, 1), [0, 3, 2, 1, 1]), ((2, 1, 4), [0, 2, 1, 4, 4])):
        for settings in ({}, {"mirror_axes": [1]}):
            label_map = SliceInferer(regions=regions, **settings)(volume, network)
            assert label_map[0, 0, 0, 0].tolist() == expected
    probabilities = SliceInferer(regions=(1, 2, 3), output="probabilities")(volume, network)
    assert torch.equal(probabilities[0, :, 0], torch.sigmoid(logits))
    strict = SliceInferer(regions=(1, 2, 3), threshold=0.8)(volume, network)
    assert not strict.any()
    with pytest.raises(ValueError, match="regions gives 2 labels, the network 3 channels"):
        SliceInferer(regions=(1, 2))(volume, network)


@pytest.mark.parametrize(
    ("rule", "channels", "dtype"),
    [
        (LabelRule(), 1, torch.uint8),
        (LabelRule(), 256, torch.uint8),
        (LabelRule(), 257, torch.int16),
        (LabelRule(regions=(1, 300)), 2, torch.int16),
        (LabelRule(regions=(40_000,)), 1, torch.int32),
    ],
)
def test_labels_are_stored_in_the_smallest_type(rule: LabelRule, channels: int, dtype: torch.dtype) -> None:
    assert rule.label_type(channels) == dtype


def test_of_equal_classes_the_first_one_wins() -> None:
    assert not SliceInferer()(VOLUME, lambda x: torch.cat([x, x, x], 1)).any()
