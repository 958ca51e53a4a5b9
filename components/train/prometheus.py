"""Serves a training's current metrics to Prometheus on a port of this machine, from a thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

PORT_VARIABLE, HOST_VARIABLE = "ROBUSTRAIN_METRICS_PORT", "ROBUSTRAIN_METRICS_HOST"
_LOCAL = "127.0.0.1"
_PREFIX = "robustrain_training_"

HELP: dict[str, str] = {
    "loss": "mean training loss of the epoch so far",
    "grad_norm": "mean L2 norm of the gradient before clipping, of the epoch so far",
    "attack_gain": "mean increase of the loss (TRADES: divergence) by the attack since its start, of the epoch so far",
    "attack_flips": "share of images whose predicted class the attack changed since its start, of the epoch so far",
    "left_out": "share of images whose step the loss scaler skipped (fp16), of the epoch so far",
    "images_per_s": "training images per second over all workers",
    "data_wait": "share of the time spent waiting for data",
    "flops_per_s": "floating-point operations per second over all workers",
    "flop_utilisation": "flops_per_s as a share of the devices' peak",
    "memory_gib": "peak memory so far in GiB: allocated on a GPU, else resident",
    "clean_accuracy": "held-out clean accuracy of the EMA weights",
    "robust_accuracy": "held-out robust accuracy of the EMA weights",
    "lr": "learning rate at the end of the last epoch",
    "epochs_done": "whole epochs done",
    "steps_done": "optimizer steps done",
}
"""Metric, without its prefix -> its description."""


class MetricsServer(Collector):
    """Serves gauges at /metrics until it is closed.

    Args:
        labels: labels of every gauge, e.g. the stage's name.
        port: 0 takes a free one.
        host: interface; by default only this machine's own.

    Attributes:
        port: the port it listens on.

    Raises:
        OSError: the port is in use or not allowed.
    """

    def __init__(self, labels: Mapping[str, str], port: int, host: str = _LOCAL) -> None:
        self._labels, self._figures = dict(labels), dict[str, float]()
        registry = CollectorRegistry()
        registry.register(self)
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = int(self._server.server_port)

    def set(self, figures: Mapping[str, float]) -> None:
        """Sets the gauges of these names; the others keep their values."""
        # A new dict, because the server's thread may be reading the old one.
        self._figures = {**self._figures, **figures}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the current gauges; called by the server for each request."""
        for name, value in sorted(self._figures.items()):
            text = HELP.get(name, name.replace("_", " "))
            gauge = GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=list(self._labels))
            gauge.add_metric(list(self._labels.values()), value)
            yield gauge

    def close(self) -> None:
        """Releases the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics_server(
    port: int | None, labels: Mapping[str, str], *, info: Callable[[str], None], warn: Callable[[str], None]
) -> MetricsServer | None:
    """Starts the server that the recipe or the environment asks for; None if neither does, or the port is in use.

    Args:
        port: the recipe's; None: that of `ROBUSTRAIN_METRICS_PORT`. `ROBUSTRAIN_METRICS_HOST` is the interface.
        info: called with the address.
        warn: called with the reason if the server cannot be started.
    """
    named = os.environ.get(PORT_VARIABLE, "")
    if port is None and named.isdigit():
        port = int(named)
    if port is None:
        return None
    host = os.environ.get(HOST_VARIABLE, _LOCAL)
    try:
        server = MetricsServer(labels, port, host)
    except (OSError, OverflowError) as error:
        # Training can run without metrics, so it is not stopped.
        warn(f"no metrics on {host}:{port}: {error}")
        return None
    info(f"metrics: http://{host}:{server.port}/metrics")
    return server
