"""The same DICOM SEG by ``write_seg`` and by highdicom alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset

OURS = "write_seg"
HIGHDICOM = "highdicom"
IN_MEMORY = "highdicom, headers in memory"


def writers(series: Path, labels: npt.NDArray[np.uint8], folder: Path) -> dict[str, Callable[[], Any]]:
    """Runs that write the label map (X, Y, Z) of the series into a file.

    ``highdicom`` reads the source's headers, as everyone must; ``headers in memory`` is its time without that. Neither
    compares what it wrote with what was meant, which ``write_seg`` does.
    """
    from accunet_monai.volumes import read_series
    from accunet_monai.volumes.dicom_seg import write_seg
    from accunet_monai.volumes.segments import AlgorithmInfo, CodedTerm, SegmentDescription, SegmentTable

    tissue = CodedTerm("85756007", "SCT", "Tissue")
    segment = SegmentDescription(1, "Body", tissue, tissue, (200, 60, 60))
    table = SegmentTable(AlgorithmInfo("benchmark", "1.0"), (segment,))
    like = read_series(series)
    headers = _headers(series)
    pixels = np.ascontiguousarray(labels.transpose(2, 1, 0))
    return {
        OURS: lambda: write_seg(folder / "ours.dcm", labels, like, table),
        HIGHDICOM: lambda: _highdicom(folder / "theirs.dcm", pixels, _headers(series)),
        IN_MEMORY: lambda: _highdicom(folder / "memory.dcm", pixels, headers),
    }


def stored_pixels(path: Path) -> tuple[int, bytes]:
    """Number of frames and the pixel data: equal for equal objects."""
    ds = pydicom.dcmread(path)
    return int(ds.NumberOfFrames), bytes(ds.PixelData)


def _headers(series: Path) -> list[Dataset]:
    headers: list[Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.iterdir()]
    return sorted(headers, key=lambda ds: float(ds.ImagePositionPatient[2]))


def _highdicom(path: Path, pixels: npt.NDArray[np.uint8], headers: Sequence[Dataset]) -> None:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence("benchmark", codes.DCM.ArtificialIntelligence, "1.0")
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Body",
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    segmentation = hd.seg.Segmentation(
        source_images=headers,
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=[description],
        series_instance_uid=hd.UID(),
        series_number=1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="benchmark",
        manufacturer_model_name="benchmark",
        software_versions="1",
        device_serial_number="1",
    )
    segmentation.save_as(path)
