"""What runs a folded network faster on a GPU: fused blocks where they are measured faster, and a recorded CUDA graph.

Nothing here knows a kernel: what may stand in for a block comes from ``candidates``, how long it takes from ``timer``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

Run = Callable[[], object]
Candidates = Callable[[nn.Module], Mapping[str, Callable[[], nn.Module]]]

FOLDED = "folded"
"""The name of a block's own form among its candidates."""

WRONG = 0.03
"""Difference from the folded block, as a share of its outputs' spread, from which on a candidate counts as wrong.

Rounding in bfloat16 stays below it; a kernel that was compiled wrongly, or reads the wrong pixel, does not.
"""


@dataclass(frozen=True)
class Choice:
    """Which form of a block was kept at which shape, and why.

    Args:
        block: the block's name in its network.
        shape: (N, C, *spatial) of its input.
        kept: name of the form that was kept.
        seconds: time of each form that ran and was right.
        refused: what went wrong with each of the others.
    """

    block: str
    shape: tuple[int, ...]
    kept: str
    seconds: Mapping[str, float]
    refused: Mapping[str, str]

    def __str__(self) -> str:
        times = [f"{form} {seconds * 1e3:.3f} ms" for form, seconds in self.seconds.items()]
        faults = [f"{form} refused ({why})" for form, why in self.refused.items()]
        shape = "×".join(map(str, self.shape))
        return f"{self.block} at {shape}: {self.kept} kept; {'; '.join(times + faults)}"


def choices(network: nn.Module) -> list[Choice]:
    """What :func:`keep_fastest` decided in ``network``, block by block; empty where nothing was to be decided."""
    left = (vars(module).get("choice") for module in network.modules())
    return [choice for choice in left if isinstance(choice, Choice)]


def keep_fastest(network: nn.Module, example: Tensor, candidates: Candidates, timer: Callable[[Run], float]) -> None:
    """Put the fastest form of every block into ``network``, each measured at the shape it has for ``example``.

    The decision is left on the block that was kept, as ``choice``. A candidate that fails, or whose output is not the
    block's, is refused and its reason written there.

    Args:
        network: changed in place. Blocks with candidates are replaced, or stay.
        example: an image batch that ``network`` takes.
        candidates: block → what may stand in for it: name → how to make it.
        timer: runs what it is given and returns seconds.
    """
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(partial(_remember, inputs, name))
        for name, module in network.named_modules()
        if candidates(module)
    ]
    with torch.no_grad():
        network(example)
        for hook in hooks:
            hook.remove()
        for name, x in inputs.items():
            kept, choice = _fastest(name, network.get_submodule(name), x, candidates, timer)
            kept.choice = choice  # type: ignore[assignment]
            network.set_submodule(name, kept)


def record_graph(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """``network`` as a CUDA graph for images like ``example``; its output's memory is written anew by each call."""

    def run(x: Tensor) -> Tensor:
        logits: Tensor = network(x)
        return logits

    with torch.cuda.device(example.device), torch.no_grad():
        return torch.cuda.make_graphed_callables(run, (example,))  # type: ignore[return-value]


class GraphedNetwork(nn.Module):
    """A network that replays a recording for images like the example, and runs as usual for all others.

    A recording saves the time that launching each kernel takes, which is most of it for small images.

    Args:
        network: in evaluation mode, on a GPU.
        example: an image batch of the shape and dtype to be recorded, on the same GPU.
        record: makes the recording.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        record: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]] = record_graph,
    ) -> None:
        super().__init__()
        self.network = network
        self.shape, self.dtype = example.shape, example.dtype
        self.replay = record(network, example)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, *spatial) → logits (N, classes, *spatial), in memory of their own."""
        if x.shape == self.shape and x.dtype == self.dtype:
            return self.replay(x).clone()
        logits: Tensor = self.network(x)
        return logits


def _remember(inputs: dict[str, Tensor], name: str, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    inputs.setdefault(name, arguments[0])


def _fastest(
    name: str, block: nn.Module, x: Tensor, candidates: Candidates, timer: Callable[[Run], float]
) -> tuple[nn.Module, Choice]:
    expected = block(x)
    forms, seconds, refused = {FOLDED: block}, {FOLDED: timer(partial(block, x))}, {}
    for form, make in candidates(block).items():
        try:
            made = make()
            difference = _difference(made(x), expected)
            if not difference <= WRONG:  # not a number, too
                refused[form] = f"differs by {difference:.1e} of the spread"
                continue
            forms[form], seconds[form] = made, timer(partial(made, x))
        except Exception as error:  # out of shared memory, no C compiler for the launcher, …: each is a reason
            refused[form] = f"{type(error).__name__}: {error}"
    kept = min(seconds, key=lambda form: seconds[form])
    return forms[kept], Choice(name, tuple(x.shape), kept, seconds, refused)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the spread of ``expected``."""
    expected = expected.float()
    return ((found.float() - expected).abs().max() / (expected.max() - expected.min())).item()
