"""A damaged JPEG frame is an error of ours: GDCM would end the process, or wait for ever."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_decoders import Coding, decode_frame

CODING = Coding(str(uid.JPEGBaseline8Bit), rows=32, columns=32, bits_allocated=8, bits_stored=8, signed=False)

DECODE = """
import pickle, sys
from accunet_monai.volumes.dicom_decoders import decode_frame
frame, coding = pickle.load(sys.stdin.buffer)
try:
    sys.stdout.buffer.write(decode_frame(frame, coding).tobytes())
except Exception as error:
    print(error, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def frame() -> bytes:
    values = np.add.outer(np.arange(32), 3 * np.arange(32)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG", quality=100)
    return stream.getvalue()


def test_a_whole_frame_is_what_pillow_decodes(frame: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(frame)))
    np.testing.assert_allclose(decode_frame(frame, CODING).astype(int), expected.astype(int), atol=1)


@pytest.mark.parametrize(
    ("damage", "decodable"),
    [
        (lambda f: f.replace(b"\xff\xc4", b"\x01\xc4", 1), False),  # a table without its marker
        (lambda f: f.replace(b"\xff\xdb", b"\xff\x00", 1), False),
        (lambda f: f.replace(b"\xff\xda\x00\x08\x01\x01\x00", b"\xff\xda\x00\x08\x01\x01\x11"), False),  # tables 1
        (lambda f: f.replace(b"\xff\xda\x00\x08\x01\x01\x00", b"\xff\xda\x00\x08\x01\x02\x00"), False),  # component 2
        (lambda f: f[: f.index(b"\xff\xda")], False),
        (lambda f: f.replace(b"JFIF\x00\x01", b"JFIF\x00\x07"), True),  # a version that no decoder knows
        (lambda f: f.removesuffix(b"\xff\xd9"), False),
    ],
)
def test_damage_is_an_error_or_nothing(damage: Callable[[bytes], bytes], decodable: bool, frame: bytes) -> None:
    damaged = damage(frame)
    assert damaged != frame
    # In a process of its own, which GDCM may end.
    command = [sys.executable, "-c", DECODE]
    done = subprocess.run(command, input=pickle.dumps((damaged, CODING)), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    if decodable:
        assert done.stdout == decode_frame(frame, CODING).tobytes()
    else:
        assert b"[PIXEL_DECODE]" in done.stderr


def test_another_size_than_declared_is_refused_before_decoding(frame: bytes) -> None:
    with pytest.raises(SeriesError) as caught:
        decode_frame(frame, Coding(CODING.syntax, 32, 31, 8, 8, False))
    assert caught.value.code == "PIXEL_SIZE"
