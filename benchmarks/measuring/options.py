"""What the benchmarks of the network take on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

SIZE_MULTIPLE = 32
"""Of SwinUNETR and FlexibleUNet; the literal form takes multiples of 16."""


def make_parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32, help="ACC-UNet's base_filters (default 32)")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"runs of each form (default {repeats})")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="Markdown file to write the tables to, too")
    parser.add_argument("--quick", action="store_true", help="a small network and image, one run, nothing compiled")
    return parser


def prepare(options: argparse.Namespace) -> None:
    """Set PyTorch up as the options say. On CUDA float32 is float32, as on the CPU, not TF32."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False


def parse_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (4, 5) or min(shape) < 1 or any(size % SIZE_MULTIPLE for size in shape[2:]):
        raise argparse.ArgumentTypeError(f"{text}: 4 or 5 whole numbers, the spatial ones multiples of {SIZE_MULTIPLE}")
    return shape
