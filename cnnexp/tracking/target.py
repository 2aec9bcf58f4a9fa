"""The destination of runs, and whether it can be reached, without importing W&B's client."""

import configparser
import contextlib
import hashlib
import netrc
import os
import re
import shlex
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from cnnexp.config.execution import Tracking
from cnnexp.core.errors import UsageError, suggestion

Mode = Literal["online", "offline", "local", "disabled"]
# The values of `$WANDB_MODE` that the client accepts, with the modes in which it then works.
CLIENT_MODES: dict[str, Literal["online", "offline", "disabled"]] = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "shared": "online",
    "run": "online",
    "dryrun": "offline",
}
PROBE_TIMEOUT_SECONDS = 2.0  # for any answer of the server
PROBE_INTERVAL_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """The destination that runs are sent to.

    Attributes:
        mode: how.
        project: the project at W&B or Trackio.
        entity: the user or team at W&B; None: the default of the key.
        directory: the folder for W&B's files; None: that of the sweep.
        artifacts: whether W&B receives the weights of each run.
        code: the files of the user that W&B receives with each run, if it saves code.
        config_folder: the user's folder of configuration files, beside which the experiment may be.
        agent_run: the id that an agent of W&B gave to its only run; None: there is no agent.
        aggregate: whether W&B receives runs or cells, see `tracking.aggregate`.
    """

    mode: Mode
    project: str
    entity: str | None
    directory: str | None = None
    artifacts: bool = False
    code: Sequence[str] = ()
    config_folder: str | None = None
    agent_run: str | None = None
    aggregate: Literal["auto", "cells", "runs"] = "auto"

    @property
    def config_path(self) -> Path | None:
        """The path of `config_folder`."""
        return Path(self.config_folder) if self.config_folder else None

    @property
    def address(self) -> str:
        """The key under which `wandb.json` in a run's folder records what was sent here."""
        where = public_url() if self.mode == "online" else f"offline {self.directory or ''}".rstrip()
        return f"{where} {self.entity or ''}/{self.project}"

    def files_folder(self, sweep: Path) -> Path:
        """Return the folder of the client's files: `directory`, `$WANDB_DIR`, or that of the sweep."""
        return Path(self.directory or os.environ.get("WANDB_DIR") or sweep)

    def advice(self, sweep: Path) -> str:
        """Say what the user may type next."""
        if self.mode == "local":
            project = "" if self.project == "cnnexp" else f" --project {shlex.quote(self.project)}"
            return f"to view them, run: cnnexp dashboard --local{project}{_results_dir(sweep)}"
        if self.mode == "offline":
            return f"to upload them, run: wandb sync {self.files_folder(sweep) / 'wandb' / 'offline-run-*'}"
        return f"to send the rest, run: {format_sync_command(sweep)}"


def format_sync_command(sweep: Path, to: str | None = None) -> str:
    """Return the command that sends the runs of a sweep that the target lacks."""
    where = f" --to {shlex.quote(to)}" if to else ""
    return f"cnnexp sync {shlex.quote(sweep.name)}{where}{_results_dir(sweep)}"


def _results_dir(sweep: Path) -> str:
    results = os.path.relpath(sweep.parent)
    results = str(sweep.parent.resolve()) if results.startswith("..") else results
    return "" if results == "results" else f" --results-dir {shlex.quote(results)}"


def target_of_config(tracking: Tracking) -> Target:
    """Resolve the tracking section of a configuration, see `resolve_mode`."""
    agent_run = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    mode = resolve_mode(tracking.mode)
    return Target(
        mode=mode,
        project=tracking.project,
        entity=tracking.entity,
        artifacts=tracking.artifacts,
        agent_run=agent_run,
        aggregate=tracking.aggregate,
    )


def resolve_mode(mode: str) -> Mode:
    """Resolve a mode of the configuration.

    `auto` is the mode of `$WANDB_MODE`; without it, online if an API key is configured, and offline
    otherwise.

    Raises:
        UsageError: the mode is online without a key, for which the client would ask, or local without
            Trackio, or the client would refuse `$WANDB_MODE`.
    """
    wanted = os.environ.get("WANDB_MODE") or "online"
    if mode in ("auto", "online", "offline") and wanted not in CLIENT_MODES:
        raise UsageError(f"WANDB_MODE={wanted}: {suggestion(wanted, CLIENT_MODES)}")
    if mode == "auto":
        mode = CLIENT_MODES[wanted]
        mode = "offline" if mode == "online" and not key_is_configured() else mode
    if mode == "online":
        if not key_is_configured():
            raise UsageError(
                f"tracking.mode=online: no W&B key is configured for {public_url()}; run: wandb login, "
                "or tracking.mode=offline"
            )
        return "online"
    if mode == "local":
        if find_spec("trackio") is None:
            raise UsageError("tracking.mode=local: needs Trackio; run: pip install 'cnnexp[local]'")
        return "local"
    return "disabled" if mode == "disabled" else "offline"


def base_url() -> str:
    """Return the server's address: `$WANDB_BASE_URL`, that of `wandb login --host`, or W&B's own."""
    url = os.environ.get("WANDB_BASE_URL") or _settings().get("base_url") or "https://api.wandb.ai"
    return url.rstrip("/")


def public_url() -> str:
    """Return the server's address without user and password, which may be printed and stored."""
    url = base_url()
    return remove_credentials(url) if "://" in url else url.rpartition("@")[2]


def hide_credentials() -> None:
    """Hide the user and password in the server's address from W&B's client, which would print them.

    The client does not need them: its key authorises its requests.
    """
    if "@" in base_url():
        os.environ["WANDB_BASE_URL"] = public_url()


def remove_credentials(text: str) -> str:
    """Remove users and passwords from the addresses in a text.

    >>> remove_credentials("no answer from https://me:secret@wandb.example:8443/x, ://")
    'no answer from https://wandb.example:8443/x, ://'
    """
    return re.sub(r"(?<=://)\S*@", "", text)


def _settings() -> dict[str, str]:
    """Read the client's settings; those in the working folder outrank those of the user."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    here = Path(os.environ.get("WANDB_DIR") or ".") / "wandb"
    files = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        files.read([user / "settings", here / "settings"])
    return dict(files["default"]) if files.has_section("default") else {}


class Reachability:
    """The reachability of the server: true if it answers; it is asked every few seconds at most."""

    def __init__(self) -> None:
        self._asked, self._answer = -PROBE_INTERVAL_SECONDS, False

    @property
    def host(self) -> str:
        """The server's name for messages."""
        return urlparse(public_url()).netloc or public_url()

    def __bool__(self) -> bool:
        if time.monotonic() - self._asked >= PROBE_INTERVAL_SECONDS:
            self._answer = _does_answer(public_url())
            self._asked = time.monotonic()
        return self._answer


def _does_answer(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code != 429
    except urllib.error.URLError as error:  # the client may trust a certificate that Python does not
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


def key_is_configured() -> bool:
    """Return whether the client finds an API key or an identity token without asking the user."""
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or read_keys())


def read_keys() -> list[str]:
    """List the API keys that the client may use, which must never be printed."""
    api_keys = [os.environ.get("WANDB_API_KEY")]
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(public_url()).netloc)
        api_keys += [entry[2]] if entry else []
    return [key for key in api_keys if key]


def remove_secrets(text: str) -> str:
    """Remove API keys, and users and passwords of addresses, from a text before it is printed."""
    password = base_url().rpartition("@")[0].rpartition(":")[2].lstrip("/")
    for secret in (*read_keys(), password, unquote(password)):
        if len(secret) > 3:  # a shorter one would be part of many words
            text = text.replace(secret, "…")
    return remove_credentials(text)


LABEL_LIMIT = 64  # characters of a job type, or of a tag
NAME_LIMIT = 128  # of a run's id and name, its group, a project
DIGEST = 8


def shorten(text: str, limit: int, tail: str = "") -> str:
    """Shorten a text to a limit by replacing its end by a hash of the whole text.

    Args:
        text: the text.
        limit: the largest number of characters of the result.
        tail: a text that is appended unchanged.

    >>> shorten("a long name", 20, " seed 1")
    'a long name seed 1'
    >>> shorten("a very long name", 20, " seed 1")
    'a ve-4e54041b seed 1'
    """
    room = limit - len(tail)
    if len(text) > room:
        digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
        text = f"{text[: room - DIGEST - 1]}-{digest}"
    return text + tail
