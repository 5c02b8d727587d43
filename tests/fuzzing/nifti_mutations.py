"""One damage to a NIfTI file: to a header field, to the bytes, or to the compressed stream."""

from __future__ import annotations

import gzip
import zlib
from random import Random

import nibabel as nib
import numpy as np

from tests.fuzzing.byte_mutations import BYTE_MUTATIONS, spliced

_PLACING = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_d", "qoffset_x", "pixdim")
_PROMISING = ("dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "magic", "sizeof_hdr", "xyzt_units")
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 352.5, 1e-38, 1e30, -1e30, 3e38, float("inf"), float("-inf"), float("nan"))
_WHOLE = (0, 1, 2, 3, 4, 7, 8, 16, 64, 255, 256, 348, 540, 32767, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1)
_DATA_TYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 511, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)
_BOMB_BYTES = 1 << 24


def mutated(content: bytes, other: bytes, random: Random) -> bytes:
    """``content`` with one to four damages, most of them to its header; ``other`` is a file of another kind."""
    packed = content[:2] == b"\x1f\x8b"
    plain = gzip.decompress(content) if packed else content
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        kind = random.random()
        if kind < 0.6:
            plain = field_changed(plain, random)
        elif kind < 0.75:
            plain = header_flipped(plain, random)
        elif kind < 0.95:
            plain = random.choice(BYTE_MUTATIONS)(plain, random)
        else:
            plain = spliced(plain, other, random)
    return _packed(plain, random) if packed else plain


def field_changed(content: bytes, random: Random) -> bytes:
    """Another number in one header field, or in one place of it, whatever is then contradicted."""
    header_class = nib.Nifti2Header if content[:1] in (b"\x1c", b"\0") and content[4:7] == b"n+2" else nib.Nifti1Header
    dtype = header_class.template_dtype
    if len(content) < dtype.itemsize:
        return content
    big = int.from_bytes(content[:4], "big") in (348, 540)
    header = np.frombuffer(content[: dtype.itemsize], dtype.newbyteorder(">" if big else "<")).copy()
    name = random.choice((*_PLACING, *_PROMISING, "dim", "dim", random.choice(dtype.names)))
    field = header[name]
    if field.dtype.kind == "S":
        header[name] = random.choice((b"", b"n+1", b"ni1", b"n+2", b"\xff" * 4, random.randbytes(4)))
    else:
        values = _DATA_TYPES if name == "datatype" else _FLOATS if field.dtype.kind == "f" else _WHOLE
        place = random.randrange(field.size)
        field.reshape(-1)[place] = _fitting(random.choice(values), field.dtype, random)
    return header.tobytes() + content[dtype.itemsize :]


def header_flipped(content: bytes, random: Random) -> bytes:
    """Bits in the header or the extensions' beginning."""
    return BYTE_MUTATIONS[0](content[:368], random) + content[368:]


def _fitting(value: float, dtype: np.dtype, random: Random) -> float:
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(np.float64(value).astype(dtype))
    bits = 8 * dtype.itemsize
    whole = int(value) % (1 << bits)
    whole = -whole % (1 << bits) if dtype.kind == "i" and random.random() < 0.3 else whole
    return whole - (1 << bits) if dtype.kind == "i" and whole >> (bits - 1) else whole


def _packed(plain: bytes, random: Random) -> bytes:
    """Compressed again: right, with damage to the stream, in several members, or followed by what inflates a lot."""
    whole = gzip.compress(plain, compresslevel=1, mtime=0)
    kind = random.random()
    if kind < 0.5:
        return whole
    if kind < 0.8:
        return random.choice(BYTE_MUTATIONS)(whole, random)
    if kind < 0.95:
        middle = random.randrange(len(plain) + 1)
        return gzip.compress(plain[:middle], mtime=0) + gzip.compress(plain[middle:], mtime=0) + random.randbytes(3)
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(plain) + packer.compress(bytes(_BOMB_BYTES)) + packer.flush()
