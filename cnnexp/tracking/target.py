"""Where runs are mirrored to, and whether it can be reached: all without importing W&B's client."""

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
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from cnnexp.config.sections import Tracking
from cnnexp.core.errors import UsageError, suggestion

Mode = Literal["online", "offline", "local", "disabled"]
# What the client accepts as `$WANDB_MODE`, and what it does then.
CLIENT_MODES: dict[str, Literal["online", "offline", "disabled"]] = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "shared": "online",
    "run": "online",
    "dryrun": "offline",
}
PROBE_SECONDS = 2.0  # for an answer from the server: any answer, as quick as it is
PROBE_EVERY = 5.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to.

    Attributes:
        directory: where W&B's files are written; None: beside the runs.
        agent_run: the id that an agent of W&B has given to the one run there is; None: there is no agent.
    """

    mode: Mode
    project: str
    entity: str | None
    directory: str | None = None
    agent_run: str | None = None

    @property
    def address(self) -> str:
        """What `wandb.json` in a run's folder calls the place that the run was sent to."""
        where = public_url() if self.mode == "online" else f"offline {self.directory or ''}".rstrip()
        return f"{where} {self.entity or ''}/{self.project}"

    def files_folder(self, sweep: Path) -> Path:
        """Where the client keeps its files: as asked for, `$WANDB_DIR`, or beside the runs."""
        return Path(self.directory or os.environ.get("WANDB_DIR") or sweep)

    def advice(self, sweep: Path) -> str:
        """What a person may type next."""
        if self.mode == "local":
            project = "" if self.project == "cnnexp" else f" --project {shlex.quote(self.project)}"
            return f"to look at them, type: cnnexp dashboard --local{project}{_results_dir(sweep)}"
        if self.mode == "offline":
            return f"to upload them: wandb sync {self.files_folder(sweep) / 'wandb' / 'offline-run-*'}"
        return f"{sync_command(sweep)} sends what is missing"


def sync_command(sweep: Path, to: str | None = None) -> str:
    """What a person types to send what is missing of a sweep."""
    where = f" --to {shlex.quote(to)}" if to else ""
    return f"cnnexp sync {shlex.quote(sweep.name)}{where}{_results_dir(sweep)}"


def _results_dir(sweep: Path) -> str:
    there = os.path.relpath(sweep.parent)
    there = str(sweep.parent.resolve()) if there.startswith("..") else there
    return "" if there == "results" else f" --results-dir {shlex.quote(there)}"


def target_of(tracking: Tracking) -> Target:
    """Resolve a tracking section; see `resolve_mode`."""
    agent_run = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    mode = resolve_mode(tracking.mode)
    return Target(mode=mode, project=tracking.project, entity=tracking.entity, agent_run=agent_run)


def resolve_mode(mode: str) -> Mode:
    """`auto` is online where an API key is configured, otherwise offline; `$WANDB_MODE` outranks `auto`.

    Raises:
        UsageError: online without a key, which would ask for one, local without Trackio, or a `$WANDB_MODE`
            that the client would refuse.
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
                f"tracking.mode=online: no W&B key is configured for {public_url()}; type: wandb login, "
                "or tracking.mode=offline"
            )
        return "online"
    if mode == "local":
        if find_spec("trackio") is None:
            raise UsageError("tracking.mode=local: needs Trackio; type: pip install 'cnnexp[local]'")
        return "local"
    return "disabled" if mode == "disabled" else "offline"


def base_url() -> str:
    """The server: `$WANDB_BASE_URL`, what `wandb login --host` has kept in W&B's settings, or W&B's own."""
    url = os.environ.get("WANDB_BASE_URL") or _settings().get("base_url") or "https://api.wandb.ai"
    return url.rstrip("/")


def public_url() -> str:
    """The server's address without a user and a password: what may be printed and stored."""
    url = base_url()
    return without_credentials(url) if "://" in url else url.rpartition("@")[2]


def drop_credentials() -> None:
    """Keep a user and a password in the server's address from W&B's client, which would print them.

    It has no use for them: its requests are authorised by its key.
    """
    if "@" in base_url():
        os.environ["WANDB_BASE_URL"] = public_url()


def without_credentials(text: str) -> str:
    """Take users and passwords out of the addresses in a text.

    >>> without_credentials("no answer from https://me:secret@wandb.example:8443/x, ://")
    'no answer from https://wandb.example:8443/x, ://'
    """
    return re.sub(r"(?<=://)\S*@", "", text)


def _settings() -> dict[str, str]:
    """What the client reads from its files: those in the folder outrank those of the user."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    here = Path(os.environ.get("WANDB_DIR") or ".") / "wandb"
    files = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        files.read([user / "settings", here / "settings"])
    return dict(files["default"]) if files.has_section("default") else {}


class Reachability:
    """Whether the server answers, asked no oftener than every few seconds."""

    def __init__(self) -> None:
        self._asked, self._answer = -PROBE_EVERY, False

    @property
    def host(self) -> str:
        """The server's name, for a person."""
        return urlparse(public_url()).netloc or public_url()

    def __bool__(self) -> bool:
        if time.monotonic() - self._asked >= PROBE_EVERY:
            self._answer = _answers(public_url())
            self._asked = time.monotonic()
        return self._answer


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code != 429
    except urllib.error.URLError as error:  # the client may know a certificate that Python does not
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


def key_is_configured() -> bool:
    """Whether the client will find a key, or a token in its place, without asking for one."""
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or keys())


def keys() -> list[str]:
    """The API keys that the client may use: never to be printed."""
    found = [os.environ.get("WANDB_API_KEY")]
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(public_url()).netloc)
        found += [entry[2]] if entry else []
    return [key for key in found if key]


def without_secrets(text: str) -> str:
    """Take keys, and users and passwords of addresses, out of a text before it is printed."""
    password = base_url().rpartition("@")[0].rpartition(":")[2].lstrip("/")
    for secret in (*keys(), password, unquote(password)):
        if len(secret) > 3:  # else it is a part of many words
            text = text.replace(secret, "…")
    return without_credentials(text)


LABEL_LIMIT = 64  # characters of a job type, or of a tag
NAME_LIMIT = 128  # of a run's id and name, its group, a project
DIGEST = 8


def shortened(text: str, limit: int, tail: str = "") -> str:
    """Keep a text within a limit: where it is longer, a hash of all of it takes the place of its end.

    Args:
        text: any.
        limit: characters that are allowed.
        tail: comes behind it, whole.

    >>> shortened("a long name", 20, " seed 1")
    'a long name seed 1'
    >>> shortened("a very long name", 20, " seed 1")
    'a ve-4e54041b seed 1'
    """
    room = limit - len(tail)
    if len(text) > room:
        digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
        text = f"{text[: room - DIGEST - 1]}-{digest}"
    return text + tail
