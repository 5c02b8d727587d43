"""Tables on the terminal, and the same in Markdown, so that documentation is pasted and never typed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

WIDTH = 150
ALLOCATOR_SETTINGS = ("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")


class Report:
    """Prints paragraphs and tables; with ``output`` writes them to a Markdown file, too, after each."""

    def __init__(self, output: Path | None) -> None:
        self._output = output
        self._parts: list[str] = []
        self._console = Console(width=WIDTH, highlight=False)

    def paragraph(self, text: str) -> None:
        """Plain text in a paragraph of its own."""
        self._console.print(text)
        self._write(text)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> None:
        """The first column is to the left, the others to the right."""
        rows = list(rows)
        table = Table(title=title, caption=caption)
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
        lines = ["|".join(("", *(f" {cell} " for cell in row), "")) for row in (columns, *rows)]
        lines.insert(1, "|---|" + "---:|" * (len(columns) - 1))
        self._write(f"**{title}**\n\n" + "\n".join(lines) + f"\n\n{caption}")

    def _write(self, part: str) -> None:
        self._parts.append(part)
        if self._output is not None:
            self._output.write_text("\n\n".join(self._parts) + "\n", encoding="utf-8")


def describe_machine(device: str) -> str:
    """One sentence: processor, its vector instructions as PyTorch uses them, threads, memory, versions, allocator."""
    names = (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    kilobytes = (int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    flags = next((line.split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")), [])
    special = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    parts = [
        next(names, platform.processor() or platform.machine()),
        " ".join([torch.backends.cpu.get_cpu_capability(), *special]),
        f"{torch.get_num_threads()} threads",
        f"{next(kilobytes, 0) / 2**20:.0f} GiB",
        f"{platform.system()}, Python {platform.python_version()}, PyTorch {torch.__version__}",
        *(f"{name}={os.environ[name]}" for name in ALLOCATOR_SETTINGS if name in os.environ),
    ]
    if device == "cuda":
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join(parts) + "."


def mebibytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**20:.0f} MiB"


def ratio(value: float | None, reference: float | None) -> str:
    """``value / reference`` to two digits, or a dash where one of them was not measured."""
    return "–" if not value or not reference else f"{value / reference:.2f}"


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []
