"""The page of `cnnexp watch --serve`: the state of a sweep as JSON, on this machine alone."""

import errno
import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cnnexp.analysis.cell_curves import Curve
from cnnexp.cli.snapshot import Snapshot, Watcher, choose_curves
from cnnexp.cli.watch_screen import Scale, count_done, format_curve_value
from cnnexp.core.errors import UsageError

ADDRESS = "127.0.0.1"
# Names by which a browser of this machine reaches it. A page of another site may make its own name lead here
# (DNS rebinding), but cannot change the name that the browser sends.
HOSTS = ("127.0.0.1", "localhost", "::1")
MAX_ROWS, MAX_PANELS, MAX_POINTS = 200, 24, 100
FOLDER = Path(__file__).parent / "watch_page"
FILES = {  # what is served, by its path: nothing else is ever opened
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve_page(watcher: Watcher, every: float, port: int) -> None:
    """Serve the page of a sweep until Ctrl-C is pressed.

    Args:
        watcher: Reads the sweep.
        every: Seconds between two readings, at least.
        port: The port; 0 chooses a free one.

    Raises:
        UsageError: The port is taken, or may not be used.
    """
    with start_server(watcher, every, port) as server:
        print(
            f"http://{ADDRESS}:{server.server_address[1]}/ (Ctrl-C ends the page, not the sweep)", flush=True
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def start_server(watcher: Watcher, every: float, port: int) -> ThreadingHTTPServer:
    """Make the server of a page, which listens at the loopback address alone; see `serve_page`."""
    state = PageState(watcher, every)
    try:
        return ThreadingHTTPServer((ADDRESS, port), partial(PageHandler, state))
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UsageError(f"--port {port}: {reason}; allowed: a free port, or 0 to choose one") from None


class PageState:
    """The state of a sweep as JSON, read anew when it is asked for and old enough.

    Args:
        watcher: Reads the sweep.
        every: Seconds between two readings, at least.
    """

    def __init__(self, watcher: Watcher, every: float):
        self._watcher, self._every = watcher, every
        self._lock, self._content, self._read_at = threading.Lock(), b"", 0.0

    def read(self) -> bytes:
        """Return the state.

        Raises:
            OSError: The store cannot be read.
        """
        with self._lock:
            if not self._content or time.monotonic() - self._read_at >= self._every:
                state = describe_state(self._watcher.take()) | {"every": self._every}
                self._content, self._read_at = json.dumps(state, allow_nan=False).encode(), time.monotonic()
            return self._content


class PageHandler(BaseHTTPRequestHandler):
    """Answers the requests of one browser."""

    def __init__(self, state: PageState, *arguments: Any):
        self._state = state
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Send a file of the page, or the state of the sweep."""
        path = urlsplit(self.path).path
        if not _is_loopback(self.headers.get("Host", "")):
            self._send_error(HTTPStatus.FORBIDDEN, f"the page is at http://{ADDRESS}/ alone")
        elif path == "/state.json":
            try:
                self._send(HTTPStatus.OK, "application/json", self._state.read())
            except OSError as error:
                self._send_error(
                    HTTPStatus.SERVICE_UNAVAILABLE, f"the store cannot be read ({error.strerror})"
                )
        elif path in FILES:
            name, kind = FILES[path]
            self._send(HTTPStatus.OK, kind, (FOLDER / name).read_bytes())
        else:
            self._send_error(HTTPStatus.NOT_FOUND, "no such page")

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        self._send(status, "application/json", json.dumps({"error": message}).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        with suppress(ConnectionError):  # the browser has closed the page
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def _is_loopback(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in HOSTS
    except ValueError:
        return False


def describe_state(snapshot: Snapshot) -> dict[str, Any]:
    """Describe a snapshot by values that JSON can hold."""
    return {
        "name": snapshot.name,
        "state": snapshot.describe_state(),
        "counts": snapshot.describe_counts(),
        "times": snapshot.describe_time(),
        "done": count_done(snapshot),
        "total": len(snapshot.progress.states),
        "ended": snapshot.progress.has_ended,
        "notes": list(snapshot.notes),
        "cells": _describe_cells(snapshot),
        "curves": _describe_curves(snapshot),
    }


def _describe_cells(snapshot: Snapshot) -> Mapping[str, Any]:
    cells = snapshot.cells.head(MAX_ROWS)
    text = "Accuracies in %, mean [95% interval over seeds]." if len(cells) else "No run has finished yet."
    if len(cells) < len(snapshot.cells):
        text += f" {len(snapshot.cells) - len(cells):,} cells are left out."
    columns = [str(column).replace("_", " ") for column in cells.columns]
    return {"columns": columns, "rows": cells.astype(str).to_numpy().tolist(), "text": text}


def _describe_curves(snapshot: Snapshot) -> Mapping[str, Any]:
    shown = choose_curves(snapshot.curves, MAX_PANELS)
    scale = Scale.of(snapshot.curves, with_seeds=True)
    text = f"{snapshot.describe_metric()}".capitalize()
    text += "; the band is from the lowest to the highest seed, grey lines are the other cells."
    if len(shown) < len(snapshot.curves):
        text += f" {len(snapshot.curves) - len(shown):,} cells are left out."
    if not any(curve.points for curve in shown):
        text, shown = "No run has been evaluated yet.", []
    return {
        "panels": [_describe_curve(curve, snapshot) for curve in shown],
        "scale": {
            "last_step": scale.last_step,
            "low": scale.low,
            "high": scale.high,
            "low_text": format_curve_value(snapshot.metric, scale.low),
            "high_text": format_curve_value(snapshot.metric, scale.high),
        },
        "text": text,
    }


def _describe_curve(curve: Curve, snapshot: Snapshot) -> Mapping[str, Any]:
    points = list(curve.points)
    every = -(-len(points) // MAX_POINTS) or 1
    thinned = points[::-1][::every][::-1]  # with the last one
    counts = ", ".join(f"{number} {state}" for state, number in curve.counts.items())
    text, label = counts, f"{curve.cell}: not evaluated yet"
    if points:
        first, last = (format_curve_value(snapshot.metric, points[index].mean) for index in (0, -1))
        text = f"{counts}, {last} at step {points[-1].step:,}"
        label = f"{curve.cell}: {snapshot.describe_metric()}, from {first} to {last}; {counts}"
    return {
        "cell": curve.cell,
        "text": text,
        "label": label,
        "running": "running" in curve.counts,
        "points": [[point.step, point.mean, point.low, point.high] for point in thinned],
    }
