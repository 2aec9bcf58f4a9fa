"""Starts the process that mirrors the store to W&B, and never waits for it longer than it says."""

import json
import netrc
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlparse

from cnnexp.config.sections import Tracking
from cnnexp.errors import UsageError

PATIENCE_SECONDS = 30.0  # at the end of a sweep, before the mirror is left behind
Mode = Literal["online", "offline", "disabled"]


def resolve_mode(mode: str) -> Mode:
    """`auto` is online where an API key is configured, otherwise offline; `$WANDB_MODE` outranks `auto`.

    Raises:
        UsageError: online without a key, which would ask for one.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _key_is_configured() else "offline")
    if mode == "online":
        if not _key_is_configured():
            raise UsageError(
                "tracking.mode=online: no W&B key is configured; type: wandb login, or tracking.mode=offline"
            )
        return "online"
    return "disabled" if mode in ("disabled", "dryrun") else "offline"


def _key_is_configured() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Mirror:
    """A context in which another process follows the runs' folders and sends what is new.

    Training never calls W&B: the process may hang or die, and the sweep loses nothing but its mirror.
    """

    def __init__(self, tracking: Tracking, *, tell: Callable[[str], None]):
        self._tracking, self._tell = tracking, tell
        self._mode = resolve_mode(tracking.mode)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Mirror":
        if self._mode == "disabled":
            return self
        order = {"mode": self._mode, "project": self._tracking.project, "entity": self._tracking.entity}
        command = [sys.executable, "-m", "cnnexp.tracking.mirror"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._send(order)  # the pipe stays open: its end says "finish up"
        return self

    def changed(self, folders: Sequence[Path]) -> None:
        """Say that there is something new in the folders of these runs."""
        if folders:
            self._send([str(folder.resolve()) for folder in folders])

    def _send(self, values: Any) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(json.dumps(values) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it died, and told why in what it printed; the runs go on
            pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        try:
            output, _ = self._process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._tell("W&B did not answer in time; the runs are complete in the store")
            return
        for line in output.splitlines():
            self._tell(line)
