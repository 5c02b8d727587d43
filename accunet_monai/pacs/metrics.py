"""Prometheus metrics of a site, read from its database when asked: counts and ages, no patient and no UID."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select

from accunet_monai.pacs.database import reading
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.status import status
from accunet_monai.pacs.tables import instances

PREFIX = "accunet_pacs"


class SiteMetrics(Collector):
    """What a scrape finds.

    Args:
        site: its settings.
        engine: of its database.
    """

    def __init__(self, site: Site, engine: Engine) -> None:
        self.site, self.engine = site, engine

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        now = status(self.site, self.engine)
        yield _by("jobs", "Jobs by state.", "state", now["jobs"])
        yield _by("dead_jobs", "Jobs that were given up, by code.", "code", now["dead"])
        yield _by("deliveries", "Deliveries by state.", "state", now["deliveries"])
        yield _one("oldest_open_seconds", "Age of the oldest job that has not ended.", now["oldest_open_seconds"] or 0)
        yield _one("workers", "Workers that hold a lease.", len(now["workers"]))
        yield _one("draining", "Whether workers begin no further job.", now["draining"])
        with reading(self.engine) as connection:
            count, size = connection.execute(select(func.count(), func.sum(instances.c.size))).one()
        yield _one("stored_instances", "Received instances in the storage.", count)
        yield _one("stored_bytes", "Their size.", int(size or 0))
        yield _one("quota_bytes", "What may be stored.", self.site.limits.quota_bytes)
        yield _one("free_bytes", "Free space of the storage's disk.", shutil.disk_usage(self.site.storage).free)


def exposition(site: Site, engine: Engine) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SiteMetrics(site, engine))
    return generate_latest(registry)


def _by(name: str, words: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", words, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family


def _one(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", words, value=float(value))
