"""Is the loader ever the bottleneck, and is the cache's second start quick?

Two questions, each answered as a ratio against a named baseline of the same run, on the hippocampus images in the
setting of its bundle (ACC-UNet of width 16, batches of 8 slices of 3 × 64 × 48):

* starts: the first start preprocesses every volume into an empty cache, the second finds them there;
* steps: a training step on batches as they come from cache, sampler, loader and augmentation, against the same step on
  one batch that is there already. Runs take turns, medians count.

    python benchmarks/data.py --dataset_dir DIR
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss

from accunet_monai.bundle import find_bundle, read_literal_sections
from accunet_monai.datasets import decathlon_cases
from accunet_monai.networks import ACCUNet
from accunet_monai.training import AugmentedBatch, BatchAugmentation, SliceDataset, SliceSampler
from benchmarks.measuring.report import Report, describe_machine, ratio

BATCH_SIZE, ROI_SIZE = 8, (64, 48)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", "--dataset-dir", type=Path, required=True, help="folder with dataset.json")
    parser.add_argument("--steps", type=int, default=40, help="steps of each kind (default 40)")
    parser.add_argument("--starts", type=int, default=5, help="second starts (default 5)")
    parser.add_argument("--workers", type=int, default=0, help="processes of the loader (default 0)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--width", type=int, default=16, help="base_filters (default 16)")
    parser.add_argument("--output", type=Path, help="Markdown file to write the tables to, too")
    parser.add_argument("--quick", action="store_true", help="two cases, a small network, two steps")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.starts, options.width = 2, 1, 2
    if options.threads:
        torch.set_num_threads(options.threads)
    report = Report(options.output)
    report.paragraph(describe_machine("cpu"))
    cases = decathlon_cases(options.dataset_dir, limit=2 if options.quick else None)
    with tempfile.TemporaryDirectory() as folder:
        dataset = measure_starts(cases, Path(folder), options, report)
        measure_steps(dataset, options, report)


def measure_starts(cases: list[Any], folder: Path, options: argparse.Namespace, report: Report) -> SliceDataset:
    sections = read_literal_sections(find_bundle("hippocampus_mri"))
    seconds: dict[str, list[float]] = {}
    for name in ("in memory, no cache", "first start", *["second start"] * options.starts):
        preprocessing = ConfigParser(sections).get_parsed_content("preprocessing")
        cache = None if "memory" in name else folder
        started = time.perf_counter()
        settings = {"context_slices": 1, "mirror": [0], "progress": False, "cache_dir": cache}
        dataset = SliceDataset(cases, preprocessing, ROI_SIZE, 0, **settings)
        seconds.setdefault(name, []).append(time.perf_counter() - started)
    first = seconds["first start"][0]
    rows = [
        (name, f"{statistics.median(taken):.3f}", ratio(first, statistics.median(taken)))
        for name, taken in seconds.items()
    ]
    caption = "Ratio: how many times faster than the first start."
    report.table(f"Start on {len(cases)} volumes", ("start", "seconds", "ratio"), rows, caption)
    return dataset


def measure_steps(dataset: SliceDataset, options: argparse.Namespace, report: Report) -> None:
    torch.manual_seed(0)
    network = ACCUNet(2, 3, 3, base_filters=options.width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss_function = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    prepare = AugmentedBatch(BatchAugmentation(probability=0.4, shift=0.1))
    batches = endless(dataset, options.workers)
    ready = AugmentedBatch()(next(batches), "cpu")

    def step(image: torch.Tensor, label: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss_function(network(image), label).backward()
        optimizer.step()

    parts: dict[str, list[float]] = {"loading": [], "augmentation": [], "step on loaded batches": [], "bare step": []}
    for _ in range(3):
        step(*ready)
    for _ in range(options.steps):
        started = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        augmented = prepare(batch, "cpu")
        prepared = time.perf_counter()
        step(*augmented)
        done = time.perf_counter()
        step(*ready)
        bare = time.perf_counter()
        for name, taken in zip(parts, (loaded - started, prepared - loaded, done - started, bare - done), strict=True):
            parts[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in parts.items()}
    rows = [(name, f"{1000 * taken:.2f}", ratio(taken, medians["bare step"])) for name, taken in medians.items()]
    throughput = medians["bare step"] / medians["step on loaded batches"]
    caption = f"Ratio: to the bare step. With the loader {throughput:.1%} of the bare step's throughput."
    title = f"A training step of width {options.width}, {BATCH_SIZE} × 3 × {ROI_SIZE[0]} × {ROI_SIZE[1]}"
    report.table(title, ("part", "ms (median)", "ratio"), rows, caption)


def endless(dataset: SliceDataset, workers: int) -> Iterator[Any]:
    sampler = SliceSampler(dataset, BATCH_SIZE, slices_per_epoch=0.78, empty=0.4)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
    return itertools.chain.from_iterable(itertools.repeat(loader))


if __name__ == "__main__":
    main()
