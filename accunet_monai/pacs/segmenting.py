"""From the stored instances of a revision to verified results in the storage: read, infer, write, compare.

Codes that end a job: all of reading a series, of the bundle's contract and of SEG; ``INSTANCE_DAMAGED`` when a stored
file is not what was received; ``BUNDLE_UNVERIFIED`` when the bundle is not the one that the job is for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from accunet_monai.batch.planes import as_volume
from accunet_monai.batch.results import ResultWriter
from accunet_monai.bundle import Predictor, find_bundle, load_bundle, verify_bundle
from accunet_monai.errors import PacsError
from accunet_monai.pacs.decoding import Decoder, read_image
from accunet_monai.pacs.logs import event
from accunet_monai.pacs.replacing import name_replaced
from accunet_monai.pacs.reports import is_wanted, make_report
from accunet_monai.pacs.results import Stored, keep, scratch
from accunet_monai.pacs.settings import BundleRule, SegProfile, Site
from accunet_monai.pacs.storage import Storage
from accunet_monai.pacs.thumbnails import draw_thumbnail, thumbnail_of
from accunet_monai.volumes import PlaneStack, Volume, write_seg
from accunet_monai.volumes.dicom_seg_verify import verify_seg
from accunet_monai.volumes.segments import SegmentTable

TURN_SECONDS = 60.0
"""So often a job that waits for the network says so."""


class TimedLock:
    """A lock that tells for how long it has been held: a driver that hangs never gives it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None

    def acquire(self, timeout: float = -1) -> bool:
        """As of :class:`threading.Lock`."""
        taken = self._lock.acquire(timeout=timeout)
        if taken:
            self._since = time.monotonic()
        return taken

    def release(self) -> None:
        """Likewise."""
        self._since = None
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def held_seconds(self) -> float:
        """Since it was taken; 0 while it is free."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


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
    lock: TimedLock

    @contextmanager
    def turn(self, waiting: Callable[[], None]) -> Iterator[Predictor]:
        """The network for one volume; ``waiting`` is called every now and then until it is free, and once more then."""
        while not self.lock.acquire(timeout=TURN_SECONDS):
            waiting()
        try:
            waiting()
            yield self.predictor
        finally:
            self.lock.release()


class Models:
    """The bundles of a site, each verified and loaded when first asked for, and then kept."""

    def __init__(self, site: Site) -> None:
        self._rules = {rule.name: rule for rule in site.bundles}
        self._device = site.jobs.device
        self._lock = TimedLock()
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
                self._loaded[bundle, digest] = Model(predictor, _present(segments), TimedLock())
            return self._loaded[bundle, digest]

    def held_seconds(self) -> float:
        """For how long a volume has been in its network, or a bundle been loading: the longest of them."""
        locks = [self._lock, *(model.lock for model in list(self._loaded.values()))]
        return max(lock.held_seconds() for lock in locks)


@dataclass(frozen=True)
class Result:
    """What a job made: a SEG, and the report of it where a destination wants one."""

    seg: Stored
    report: Stored | None


def store_result(
    engine: Engine,
    site: Site,
    model: Model,
    revision_id: str,
    rule: BundleRule,
    replaced: Sequence[Path],
    decoder: Decoder,
    waiting: Callable[[], None],
) -> Result:
    """Segment a revision and store what comes of it under the digests of its bytes, fsynced.

    Args:
        engine: of the database.
        site: its settings.
        model: the bundle.
        revision_id: of the series.
        rule: of the bundle.
        replaced: the SEG that this one replaces, and its report, if there are any.
        decoder: tries the pixels first.
        waiting: as of :meth:`Model.turn`.

    Raises:
        AccunetError: what reading, predicting and writing raise, and ``INSTANCE_DAMAGED``.
    """
    earlier_seg, earlier_report = (*replaced, None, None)[:2]
    with scratch(site) as folder:
        seg, report, picture = (folder / name for name in ("seg.dcm", "report.dcm", "seg.png"))
        Storage(site.storage, site.limits).checkout(engine, revision_id, folder / "series")
        decoder.check(folder / "series", rule.planes)
        profile = profile_of(site, rule)
        image = segment(folder / "series", seg, model, profile, rule.planes, earlier_seg, waiting)
        wanted = not rule.shadow and is_wanted(site, rule)
        if wanted:
            make_report(report, seg, image, model.segments.algorithm, earlier_report)
        if not rule.allow_burned_in:  # a picture of such an image might show a name
            _try_thumbnail(seg, image, picture)
        result = Result(keep(site, seg), keep(site, report) if wanted else None)
        if picture.exists():
            picture.replace(thumbnail_of(site.storage / result.seg.file))
        return result


def _try_thumbnail(seg: Path, image: Volume | PlaneStack, target: Path) -> None:
    try:
        draw_thumbnail(seg, image, target)
    except Exception as error:  # no result is lost for want of its picture
        event("no_thumbnail", logging.WARNING, exception=type(error).__name__)


def segment(
    series: Path,
    target: Path,
    model: Model,
    profile: SegProfile,
    planes: bool,
    replaced: Path | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> Volume | PlaneStack:
    """Write the SEG of the series in a folder, compared once it is as it will be sent; returns the image."""
    like = read_image(series, planes)
    image = like if isinstance(like, Volume) else as_volume(like, model.predictor, "its planes make no grid")
    with model.turn(waiting) as predictor:
        label_map = predictor.predict(image).label_map
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
    return like


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


def _present(segments: SegmentTable | None) -> SegmentTable:
    if segments is None:  # ResultWriter gives one for "seg", or raises
        raise PacsError("BUNDLE_NO_SEGMENTS", "the bundle does not say what its labels mean in DICOM.")
    return segments


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
