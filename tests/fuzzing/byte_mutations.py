"""Damages that know nothing of a format: flipped bits, cut, filled, moved and doubled stretches."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


def bits_flipped(content: bytes, random: Random) -> bytes:
    """One to sixteen bits anywhere."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16)) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def truncated(content: bytes, random: Random) -> bytes:
    """The end is missing; most often a little of it, sometimes nearly all."""
    if random.random() < 0.3:
        return content[: max(0, len(content) - random.randint(1, 64))]
    return content[: random.randrange(len(content) + 1)]


def stretch_deleted(content: bytes, random: Random) -> bytes:
    """Something in the middle is missing."""
    start, end = _stretch(content, random)
    return content[:start] + content[end:]


def stretch_repeated(content: bytes, random: Random) -> bytes:
    """Something is there twice."""
    start, end = _stretch(content, random)
    return content[:end] + content[start:end] + content[end:]


def stretch_filled(content: bytes, random: Random) -> bytes:
    """Zeros, ones or noise in the place of something."""
    start, end = _stretch(content, random)
    filling = random.choice((b"\0", b"\xff", b" ", b"A"))
    noise = random.randbytes(end - start) if random.random() < 0.4 else filling * (end - start)
    return content[:start] + noise + content[end:]


def stretches_swapped(content: bytes, random: Random) -> bytes:
    """Two neighbouring stretches in each other's place."""
    start, end = _stretch(content, random)
    middle = random.randint(start, end)
    return content[:start] + content[middle:end] + content[start:middle] + content[end:]


def noise_appended(content: bytes, random: Random) -> bytes:
    """Bytes after the end."""
    return content + random.choice((b"\0", b"\xff", random.randbytes(64))) * random.choice((1, 7, 1000))


def spliced(content: bytes, other: bytes, random: Random) -> bytes:
    """The beginning of one file and the rest of another."""
    where = random.randrange(len(content) + 1)
    return content[:where] + other[min(where, len(other)) :]


def _stretch(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.choice((1, 2, 4, 8, 32, 128, 1024)))


BYTE_MUTATIONS: tuple[Callable[[bytes, Random], bytes], ...] = (
    bits_flipped,
    truncated,
    stretch_deleted,
    stretch_repeated,
    stretch_filled,
    stretches_swapped,
    noise_appended,
)
