"""Use of processor, memory, disk, network and GPU, as MLflow's own monitor measures it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from mlflow import MlflowClient


def machine_metrics(run_id: str, client: MlflowClient) -> Callable[[], Mapping[str, float]] | None:
    """A function that gives what the machine does now, under the names of MLflow's page "System metrics".

    MLflow's monitor has a thread of its own, which ends when the server does not answer once; here it is only asked.
    ``None`` without the package psutil, which it needs.
    """
    try:
        from mlflow.system_metrics import system_metrics_monitor
    except ImportError:
        return None
    told = logging.getLogger(system_metrics_monitor.__name__)
    told.setLevel(max(told.level, logging.WARNING))  # that there is no GPU is no news
    made: Any = system_metrics_monitor.SystemMetricsMonitor
    monitor = made(run_id, tracking_uri=client.tracking_uri)

    def sample() -> Mapping[str, float]:
        monitor.collect_metrics()
        values = {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for part in monitor.monitors:
            part.clear_metrics()
        return values

    return sample
