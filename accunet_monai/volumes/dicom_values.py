"""Stored values → modality units, slice by slice, into one float32 array."""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_frames import Frame
from accunet_monai.volumes.dicom_pixels import Pixels, native_values, read_frames, stored_bytes
from accunet_monai.volumes.dicom_refusals import refusal

MAX_DECODED_BYTES = 4 << 30
"""A volume may take this much as float32: 4096 slices of 512×512."""

READING_THREADS = 2
"""Reading and scaling free the interpreter, and one core alone does not keep up with memory that is filled anew."""

FRAMES_PER_JOB = 16
"""Of a multi-frame object: few enough to share among workers, enough not to open the file all the time."""

JOBS_AT_ONCE = 4
"""A worker gets so many objects at a time."""

AIR = {"CT": -1024.0}
"""Value of a pixel that is none (Pixel Padding Value), by modality: -1024 HU, the lowest that CT scanners write, which
is air to every window and network. Elsewhere 0, no signal and no activity."""


def decode(
    frames: Sequence[Frame], max_bytes: int = MAX_DECODED_BYTES, workers: int = 1
) -> tuple[npt.NDArray[np.float32], int]:
    """(columns, rows, N) in modality units, and the number of padding pixels that became ``AIR``.

    Args:
        frames: all of one size.
        max_bytes: what the array may take.
        workers: processes that decompress; uncompressed pixels are read by ``READING_THREADS`` threads.

    Raises:
        SeriesError: ``PIXEL_TOO_LARGE`` before anything is allocated, or as :func:`read_frames`.
    """
    first = frames[0]
    size = len(frames) * first.rows * first.columns * np.dtype(np.float32).itemsize
    if size > max_bytes:
        message = f"{len(frames)} slices of {first.rows}×{first.columns} take {size} bytes, allowed are {max_bytes}"
        raise refusal("PIXEL_TOO_LARGE", message, frames)
    planes = _new_planes((len(frames), first.rows, first.columns))
    jobs = _jobs(frames)
    padded = 0
    native = [job for job in jobs if job.pixels.native]
    with ThreadPoolExecutor(READING_THREADS) as threads:
        padded += sum(threads.map(lambda job: _fill(planes, frames, job, _read(job)), native))
    packed = [job for job in jobs if not job.pixels.native]
    if workers == 1 or len(packed) < 2:
        padded += sum(_fill(planes, frames, job, _read(job)) for job in packed)
    else:
        padded += _fill_by_processes(planes, frames, packed, workers)
    return planes.transpose(2, 1, 0), padded


def pixel_digests(frames: Sequence[Frame]) -> list[bytes | None]:
    """Digests of the frames' values; None where they cannot be read.

    Frames coded alike are compared as they are stored, others in modality units.
    """
    coded_alike = len({_coding(frame) for frame in frames}) == 1
    return [_digest(frame, as_stored=coded_alike) for frame in frames]


def _coding(frame: Frame) -> tuple[object, ...]:
    pixels = frame.instance.pixels
    return replace(pixels, path=Path(), offset=0, length=0, end=0, stream_start=0), frame.tile, frame.rescale


def _digest(frame: Frame, *, as_stored: bool) -> bytes | None:
    if frame.instance.problem or frame.rescale is None:
        return None
    try:
        if as_stored:
            return hashlib.sha256(stored_bytes(frame.instance.pixels, frame.index)).digest()
        return hashlib.sha256(decode([frame])[0].tobytes(order="F")).digest()
    except SeriesError:
        return None


def _new_planes(shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Memory in plain pages. numpy asks for huge ones, and to find them the kernel may first move other memory about.

    Reading 300 slices right after another program's 150 MB took 3 to 6 s that way, 1.5 s this way (Linux 2-core machine
    under load).
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return np.empty(shape, np.float32)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(np.float32).itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.float32).reshape(shape)


@dataclass(frozen=True)
class _Job:
    """Stored frames of one object to read, ascending, and the slices that each one fills."""

    pixels: Pixels
    wanted: Mapping[int, Sequence[int]]


def _jobs(frames: Sequence[Frame]) -> list[_Job]:
    """As many for an object as its frames are worth: a deflated one is inflated as a whole, so it has one."""
    objects: dict[int, Pixels] = {}
    wanted: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for k, frame in enumerate(frames):
        key = id(frame.instance.pixels)
        objects[key] = frame.instance.pixels
        wanted[key][frame.index].append(k)
    jobs = []
    for key, pixels in objects.items():
        indices = sorted(wanted[key])
        step = len(indices) if pixels.deflated else FRAMES_PER_JOB
        chunks = (indices[start : start + step] for start in range(0, len(indices), step))
        jobs += [_Job(pixels, {index: wanted[key][index] for index in chunk}) for chunk in chunks]
    return jobs


def _read(job: _Job) -> Iterator[npt.NDArray[Any]]:
    return read_frames(job.pixels, list(job.wanted))


def _read_all(job: _Job) -> list[npt.NDArray[Any]]:
    return list(_read(job))


def _fill_by_processes(
    planes: npt.NDArray[np.float32], frames: Sequence[Frame], jobs: Sequence[_Job], workers: int
) -> int:
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
            results = zip(jobs, processes.map(_read_all, jobs, chunksize=JOBS_AT_ONCE), strict=True)
            return sum(_fill(planes, frames, job, stored) for job, stored in results)
    except SeriesError as error:
        raise refusal(error.code, error.message.rstrip("."), frames) from error
    except BrokenProcessPool as error:
        raise refusal("PIXEL_DECODE", "a decoder died over the pixels", frames) from error


def _fill(
    planes: npt.NDArray[np.float32], frames: Sequence[Frame], job: _Job, stored: Iterable[npt.NDArray[Any]]
) -> int:
    """Puts the job's frames where they belong; says how many pixels were padding."""
    padded = 0
    try:
        for raw, slices in zip(stored, job.wanted.values(), strict=True):
            for k in slices:
                padded += _rescale(raw, frames[k], planes[k])
    except SeriesError as error:
        concerned = [frames[k] for slices in job.wanted.values() for k in slices]
        raise refusal(error.code, error.message.rstrip("."), concerned) from error
    return padded


def _rescale(raw: npt.NDArray[np.integer], frame: Frame, plane: npt.NDArray[np.float32]) -> int:
    """Fills ``plane`` (rows, columns); says how many pixels were padding."""
    pixels = frame.instance.pixels
    if frame.tile:
        tile = frame.tile
        raw = raw[tile.row : tile.row + tile.rows, tile.column : tile.column + tile.columns]
    stored = native_values(raw, pixels) if pixels.native else raw
    slope, intercept = frame.rescale or (1.0, 0.0)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, which Volume refuses
        if slope == 1.0 and pixels.bits_allocated <= 16 and intercept == int(intercept):
            np.add(stored, np.float32(intercept), out=plane)  # exact: whole numbers below 2**24
        else:
            plane[...] = stored * slope + intercept  # in float64, rounded once
    if pixels.padding is None:
        return 0
    low, high = pixels.padding
    padding = raw == low if low == high else (raw >= low) & (raw <= high)
    count = int(np.count_nonzero(padding))
    if count:
        plane[padding] = AIR.get(frame.instance.modality, 0.0)
    return count
