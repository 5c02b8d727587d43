"""From the stored instances of a revision to a verified DICOM SEG in the storage: read, infer, write, compare.

Codes that end a job: all of reading a series, of the bundle's contract and of SEG; ``INSTANCE_DAMAGED`` when a stored
file is not what was received; ``BUNDLE_UNVERIFIED`` when the bundle is not the one that the job is for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from sqlalchemy import Engine

from accunet_monai.batch.planes import as_volume
from accunet_monai.batch.results import ResultWriter
from accunet_monai.bundle import Predictor, find_bundle, load_bundle, verify_bundle
from accunet_monai.errors import PacsError
from accunet_monai.pacs.decoding import Decoder, read_image
from accunet_monai.pacs.replacing import name_replaced
from accunet_monai.pacs.settings import BundleRule, SegProfile, Site
from accunet_monai.pacs.storage import Storage
from accunet_monai.volumes import PlaneStack, Volume, write_seg
from accunet_monai.volumes.dicom_seg_verify import verify_seg
from accunet_monai.volumes.segments import SegmentTable

RESULTS = "results"
WORK = "work"


@dataclass(frozen=True)
class Model:
    """A bundle in memory.

    Args:
        predictor: its network.
        segments: what its labels mean, with the digests of weights and configuration.
        lock: one volume at a time: two at once would need twice the memory and be no faster.
    """

    predictor: Predictor
    segments: SegmentTable
    lock: threading.Lock


class Models:
    """The bundles of a site, each verified and loaded when first asked for, and then kept."""

    def __init__(self, site: Site) -> None:
        self._rules = {rule.name: rule for rule in site.bundles}
        self._device = site.jobs.device
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, str], Model] = {}

    def rule(self, bundle: str) -> BundleRule:
        """The site's rule for a bundle.

        Raises:
            PacsError: ``BUNDLE_NOT_CONFIGURED``.
        """
        if bundle not in self._rules:
            hint = "Put it back, or cancel its jobs."
            raise PacsError("BUNDLE_NOT_CONFIGURED", f"the site has no bundle {bundle!r}.", hint=hint)
        return self._rules[bundle]

    def get(self, bundle: str, digest: str) -> Model:
        """The bundle that a job is for.

        Args:
            bundle: its name.
            digest: of its manifest when the job was made.

        Raises:
            BundleError: ``BUNDLE_UNVERIFIED`` when it is another by now, and all of loading.
        """
        folder = find_bundle(self.rule(bundle).bundle)
        with self._lock:
            if (bundle, digest) not in self._loaded:
                verify_bundle(folder, digest=digest)
                predictor = load_bundle(folder, device=self._device or _device())
                segments = ResultWriter(predictor, "seg", set()).segments
                self._loaded[bundle, digest] = Model(predictor, _present(segments), threading.Lock())
            return self._loaded[bundle, digest]


@dataclass(frozen=True)
class StoredSeg:
    """A SEG file in the storage: path from its folder, digest of its bytes, and what names it in DICOM."""

    file: str
    sha256: str
    sop_instance_uid: str


def store_seg(
    engine: Engine,
    site: Site,
    model: Model,
    revision_id: str,
    profile: SegProfile,
    planes: bool,
    replaced: Path | None,
    decoder: Decoder,
) -> StoredSeg:
    """Segment a revision and store the SEG under the digest of its bytes, fsynced.

    Args:
        engine: of the database.
        site: its settings.
        model: the bundle.
        revision_id: of the series.
        profile: of the SEG.
        planes: whether stacks of planes that are no grid are taken.
        replaced: the SEG that this one replaces, if any.
        decoder: tries the pixels first.

    Raises:
        AccunetError: what reading, predicting and writing raise, and ``INSTANCE_DAMAGED``.
    """
    with scratch(site) as folder:
        Storage(site.storage, site.limits).checkout(engine, revision_id, folder / "series")
        decoder.check(folder / "series", planes)
        segment(folder / "series", folder / "seg.dcm", model, profile, planes, replaced)
        return keep(site, folder / "seg.dcm")


def segment(
    series: Path, target: Path, model: Model, profile: SegProfile, planes: bool, replaced: Path | None = None
) -> Volume | PlaneStack:
    """Write the SEG of the series in a folder, compared once it is as it will be sent; returns the image."""
    like = read_image(series, planes)
    image = like if isinstance(like, Volume) else as_volume(like, model.predictor, "its planes make no grid")
    with model.lock:
        label_map = model.predictor.predict(image).label_map
    encoding = {"binary": "BINARY", "labelmap": "LABELMAP", "fractional": "FRACTIONAL"}[profile.type]
    write_seg(
        target,
        label_map,
        like,
        model.segments,
        encoding=encoding,  # type: ignore[arg-type]
        omit_empty_frames=profile.omit_empty_frames,
    )
    if replaced is not None:
        name_replaced(target, replaced)
        verify_seg(target, label_map, like)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return like


def keep(site: Site, file: Path) -> StoredSeg:
    """Move a finished SEG, which is on disk already, to the place that its digest names."""
    digest = _sha256(file)
    name = Path(RESULTS) / digest[:2] / f"{digest}.dcm"
    target = site.storage / name
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    sync_folder(target.parent)
    sync_folder(target.parent.parent)
    header = pydicom.dcmread(target, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
    return StoredSeg(name.as_posix(), digest, str(header.SOPInstanceUID))


def stored_file(site: Site, file: str | None, sha256: str) -> Path:
    """The path of a stored SEG whose bytes are those that were stored.

    Raises:
        PacsError: ``SEG_CHANGED``.
    """
    try:
        unchanged = file is not None and _sha256(site.storage / file) == sha256
    except OSError:
        unchanged = False
    if file is None or not unchanged:
        hint = "Replay the job to make it again: accunet pacs replay"
        raise PacsError("SEG_CHANGED", "the stored SEG is missing or not what was stored.", hint=hint)
    return site.storage / file


@contextmanager
def scratch(site: Site) -> Iterator[Path]:
    """A folder inside the storage that is removed afterwards; its name says nothing."""
    parent = site.storage / WORK
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def profile_of(site: Site, rule: BundleRule) -> SegProfile:
    """The one SEG profile of a bundle's destinations.

    Raises:
        PacsError: ``SITE_PROFILES`` when they differ: a job makes one object.
    """
    profiles: Sequence[SegProfile] = [site.destination(name).seg for name in rule.destinations]
    if any(profile != profiles[0] for profile in profiles):
        message = f"the destinations of {rule.name!r} want different SEG profiles."
        raise PacsError("SITE_PROFILES", message, hint="Copy the bundle under another name for the other profile.")
    return profiles[0] if profiles else SegProfile()


def sync_folder(folder: Path) -> None:
    """What was renamed into a folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _present(segments: SegmentTable | None) -> SegmentTable:
    if segments is None:  # ResultWriter gives one for "seg", or raises
        raise PacsError("BUNDLE_NO_SEGMENTS", "the bundle does not say what its labels mean in DICOM.")
    return segments


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
