"""The git revision of cnnexp's own code."""

import json
import subprocess
from importlib.metadata import PackageNotFoundError, distribution

from cnnexp.core.machine import PACKAGE

INSTALLED, UNKNOWN = "installed", "unknown"  # in place of a revision


def git_revision() -> str:
    """Return the commit of the code, with "+" if files of the checkout differ from it.

    Outside of a checkout it is the commit that pip recorded when it installed cnnexp from a repository;
    "installed" if there is none, and "unknown" if git does not answer.

    References:
        PEP 610, `direct_url.json`.
    """
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return _recorded_revision() or INSTALLED
    try:
        revision, changes = (
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return revision.strip() + ("+" if changes else "")


def _recorded_revision() -> str | None:
    try:
        text = distribution("cnnexp").read_text("direct_url.json")
        return json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, ValueError):
        return None
