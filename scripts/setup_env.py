#!/usr/bin/env python3
"""Set up the project's environment in `.venv`, from Python alone: scripts/setup_env.py [--extra NAME ...]

Every file that is installed or that takes part in a build is checked against the hash in requirements.lock.
What was set up already is known by a stamp, so that a second start takes milliseconds.
"""

from __future__ import annotations  # an old Python must get as far as saying what it lacks

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
VENV = ROOT / ".venv"
BIN = VENV / "bin"
STAMP = VENV / "set-up.json"
OLDEST = (3, 11)


def set_up(extras: set[str]) -> None:
    """Install the project and the dependencies of these extras into `.venv`, unless it has them already."""
    if sys.version_info < OLDEST:
        sys.exit(f"set-up needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable})")
    digest, stamp = _digest(), _read_stamp()
    if stamp["digest"] == digest and extras <= set(stamp["extras"]):
        return
    extras = extras | set(stamp["extras"])  # what was set up once follows the lock from then on
    _step("making the environment", sys.executable, "-m", "venv", *_clear(), str(VENV))
    _install_uv()
    names = f"[{','.join(sorted(extras))}]" if extras else ""
    # Constraints carry their hashes, for what is installed and, separately, for what builds it.
    constraints = ("--constraints", str(LOCK), "--build-constraints", str(LOCK))
    install = (str(BIN / "uv"), "pip", "install", "--python", str(BIN / "python"), "--compile-bytecode")
    _step(f"installing cnnexp{names}, some minutes the first time", *install, *constraints, "-e", f".{names}")
    # Python writes the bytecode of the project itself only where PYTHONDONTWRITEBYTECODE is not set.
    packages = [str(ROOT / name) for name in ("cnnexp", "hydra_plugins", "experiments")]
    _step("compiling bytecode", str(BIN / "python"), "-m", "compileall", "-q", *packages)
    STAMP.write_text(json.dumps({"digest": digest, "extras": sorted(extras)}) + "\n", encoding="utf-8")


def _digest() -> str:
    files = b"\0".join(path.read_bytes() for path in (ROOT / "pyproject.toml", LOCK))
    return hashlib.sha256(files + repr((*sys.version_info[:2], str(ROOT))).encode()).hexdigest()


def _read_stamp() -> dict:
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"digest": None, "extras": []}


def _clear() -> list[str]:
    """Return the option that clears an environment of another Python; one of this Python is kept."""
    library = VENV / "lib" / "python{}.{}".format(*sys.version_info)
    return ["--clear"] if VENV.exists() and not library.exists() else []


def _install_uv() -> None:
    """Install uv with pip, from a lock of uv alone: with hashes, pip demands one for every requirement."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("uv=="))
    end = next(number for number in range(start, len(lines)) if not lines[number].endswith("\\"))
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as entry:
        entry.write("\n".join(lines[start : end + 1]) + "\n")
        entry.flush()
        pip = (str(BIN / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check")
        _step("installing uv", *pip, "--no-deps", "--require-hashes", "-r", entry.name)


def _step(what: str, *command: str) -> None:
    print(f"set-up: {what}", file=sys.stderr, flush=True)
    try:
        code = subprocess.run(command, cwd=ROOT).returncode
    except KeyboardInterrupt:
        code = 130
    if code:
        print(f"set-up: {what} failed; what was wrong is above", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Set up .venv from requirements.lock.")
    extras = ("dev", "docs", "local", "optuna", "tfds", "cuda", "tpu", "slurm", "ray")
    parser.add_argument("--extra", action="append", default=[], choices=extras)
    set_up(set(parser.parse_args().extra))
