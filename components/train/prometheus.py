"""The present figures in Prometheus' text format (version 0.0.4) on a port of this machine, from a thread."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT_VARIABLE, HOST_VARIABLE = "ROBUSTRAIN_METRICS_PORT", "ROBUSTRAIN_METRICS_HOST"
_LOCAL = "127.0.0.1"
_TYPE = "text/plain; version=0.0.4; charset=utf-8"

HELP: dict[str, str] = {
    "loss": "mean training loss of the epoch so far",
    "grad_norm": "mean L2 norm of the gradient before clipping, of the epoch so far",
    "attack_gain": "mean loss (TRADES: divergence) that the attack added to that at its start, of the epoch so far",
    "attack_flips": "share of images whose predicted class at the attack's start it changed, of the epoch so far",
    "left_out": "share of images whose step the loss scaler left out (fp16), of the epoch so far",
    "images_per_s": "training images a second over all workers",
    "data_wait": "share of the time spent waiting for data",
    "flops_per_s": "floating-point operations a second over all workers",
    "flop_utilisation": "flops_per_s as a share of the devices' peak",
    "memory_gib": "most memory so far in GiB: allocated on a GPU, else resident",
    "clean_accuracy": "held-out clean accuracy of the averaged weights",
    "robust_accuracy": "held-out robust accuracy of the averaged weights",
    "lr": "learning rate at the end of the last epoch",
    "epochs_done": "whole epochs done",
    "steps_done": "optimizer steps done",
}


class Exposition:
    """Serves figures at /metrics until it is closed.

    Args:
        labels: put on every figure, e.g. the stage's name.
        port: 0 takes a free one.
        host: the interface; only this machine's own by default.

    Attributes:
        port: the port it listens on.

    Raises:
        OSError: the port cannot be had.
    """

    def __init__(self, labels: Mapping[str, str], port: int, host: str = _LOCAL) -> None:
        self._labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
        self._figures: dict[str, float] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((host, port), self._handler())
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="metrics")
        self._thread.start()

    def set(self, figures: Mapping[str, float]) -> None:
        """Replaces figures of these names; the others keep their values."""
        with self._lock:
            self._figures.update(figures)

    def text(self) -> str:
        """The present figures, one gauge each."""
        with self._lock:
            figures = dict(self._figures)
        lines = []
        for name, value in sorted(figures.items()):
            full = f"robustrain_training_{name}"
            said = HELP.get(name, name.replace("_", " "))
            lines += [f"# HELP {full} {said}", f"# TYPE {full} gauge", f"{full}{{{self._labels}}} {_number(value)}"]
        return "".join(f"{line}\n" for line in lines)

    def close(self) -> None:
        """Gives the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        exposition = self

        class Handler(BaseHTTPRequestHandler):
            """GET /metrics."""

            def do_GET(self) -> None:
                if self.path.partition("?")[0] not in ("/metrics", "/"):
                    self.send_error(404)
                    return
                body = exposition.text().encode()
                self.send_response(200)
                self.send_header("Content-Type", _TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: a scrape every few seconds would fill the log."""

        return Handler


def open_exposition(port: int | None, labels: Mapping[str, str]) -> Exposition | None:
    """The exposition that the recipe or the environment asks for; None where neither does, or the port is taken.

    Args:
        port: the recipe's; None: `ROBUSTRAIN_METRICS_PORT`'s. `ROBUSTRAIN_METRICS_HOST` is the interface.
    """
    named = os.environ.get(PORT_VARIABLE, "")
    if port is None and named.isdigit():
        port = int(named)
    if port is None:
        return None
    host = os.environ.get(HOST_VARIABLE, _LOCAL)
    try:
        opened = Exposition(labels, port, host)
    except (OSError, OverflowError) as error:
        # A display that cannot be shown must not stop a training that can run.
        print(f"warning: no metrics on {host}:{port}: {error}", file=sys.stderr, flush=True)
        return None
    print(f"metrics: http://{host}:{opened.port}/metrics", flush=True)
    return opened


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
