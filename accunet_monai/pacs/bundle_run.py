"""A site run from a bundle: ``python -m monai.bundle run --config_file BUNDLE/configs/pacs.yaml --site FILE``."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from accunet_monai.bundle import find_bundle
from accunet_monai.errors import PacsError
from accunet_monai.pacs.completeness import close_complete
from accunet_monai.pacs.inbox import OpenSite
from accunet_monai.pacs.jobs import OPEN, counts, draining
from accunet_monai.pacs.judging import Judge
from accunet_monai.pacs.logs import configure_logs
from accunet_monai.pacs.serving import Serving
from accunet_monai.pacs.settings import Site, read_site
from accunet_monai.pacs.worker import Worker

LOOK_SECONDS = 0.2


def run_site(site: str, bundle_root: str, *, workers: int = 1, once: bool = False) -> None:
    """Serve a site that has a bundle until SIGTERM or Ctrl-C, or once through what is there.

    Args:
        site: the file of its settings.
        bundle_root: the bundle's folder.
        workers: worker processes, unless ``once``.
        once: receive nothing; close what is complete, run all jobs of the site to their end in this process, and end.

    Raises:
        PacsError: ``BUNDLE_NOT_CONFIGURED`` when the site does not name the bundle, ``SITE_DRAINING``, and what
            reading the settings and opening the site raise.
    """
    settings = read_site(site)
    root = Path(bundle_root).resolve()
    if root not in [find_bundle(rule.bundle).resolve() for rule in settings.bundles]:
        hint = f"Name it under `bundles` in {site}."
        raise PacsError("BUNDLE_NOT_CONFIGURED", f"the site does not have the bundle {root.name!r}.", hint=hint)
    configure_logs()
    if once:
        run_once(settings)
        return
    serving = Serving(Path(site), settings, workers)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: serving.stop())
    serving.run()


def run_once(site: Site) -> None:
    """Close the series that are complete and run all jobs until none is open.

    Raises:
        PacsError: ``SITE_DRAINING``, for then no job begins.
    """
    if draining(site):
        raise PacsError("SITE_DRAINING", "no job begins.", hint="accunet pacs drain --resume")
    with OpenSite(site) as opened:
        judge = Judge(site.limits.decode_memory_bytes)
        close_complete(site, opened.engine, opened.storage, judge)
        judge.close()
    worker = Worker(site)
    threading.Thread(target=_stop_when_done, args=(worker,), name="waiting", daemon=True).start()
    worker.run()


def _stop_when_done(worker: Worker) -> None:
    while not worker.steps.stop.is_set():
        found = counts(worker.engine)
        if not any(found.get(state) for state in OPEN):
            worker.stop()
        time.sleep(LOOK_SECONDS)
