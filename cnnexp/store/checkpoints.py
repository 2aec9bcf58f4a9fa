"""The state of a stack on disk, from which an interrupted sweep goes on.

A stack's folder has a folder of Orbax's for each step that was saved, and beside it, written last, the
step's manifest: the checksums of all its files, and how far the runs' histories were written. A step without
its manifest was not saved; one with other files than those of its manifest is corrupt.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnexp.store.files import NO_FILE, crc32_of, is_name, read_json, write_json
from cnnexp.store.runs import Written, set_aside

KEPT = 2  # checkpoints of a stack
ROOM_BYTES = 1 << 20  # that a checkpoint takes beside its arrays, at most
RUNS = "runs.json"  # of a stack's folder: its runs' ids, in the order of the run axis


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A state, and what each run's history was when it was saved."""

    state: Any
    histories: Mapping[str, Written]


class StackCheckpoints:
    """The last checkpoints of one stack: whole or absent.

    Args:
        folder: the sweep's.
        runs: ids of the stack's runs, in the order of the run axis.
        since: the step that the stack goes on from; None: it starts anew. Later ones are dropped.
        writes: whether this process is the first of those that save together.
    """

    def __init__(self, folder: Path, runs: Sequence[str], *, since: int | None = None, writes: bool = True):
        self.folder = folder / "checkpoints" / _digest(runs)
        self._runs, self._writes = list(runs), writes
        self._since, self._begun = since, False

    def save(self, step: int, state: Any, histories: Mapping[str, Written] | None = None) -> None:
        """Keep a state; the oldest beyond two is dropped.

        Raises:
            OSError: the disk is full, or refuses.
        """
        import orbax.checkpoint as ocp

        folder = self.folder / str(step)
        if self._writes and not self._begun:
            write_json(self.folder / RUNS, {"runs": self._runs})
            self._drop(lambda saved: self._since is None or saved > self._since)
            self._begun = True
        if self._writes:
            _reserve(self.folder, state)
        try:
            _checkpointer().save(folder.resolve(), args=ocp.args.StandardSave(state), force=True)
        except Exception as error:
            self._drop_unfinished()
            raise _as_os_error(error, folder) or error from None
        if self._writes:
            kept = {run: [written.size, written.crc32] for run, written in (histories or {}).items()}
            write_json(_manifest(folder), {"files": _sums(folder), "histories": kept})
            oldest_kept = sorted(_steps(self.folder))[-KEPT:][0]
            self._drop(lambda saved: saved < oldest_kept)

    def delete(self) -> None:
        """The stack has ended: its results are in the store."""
        if self._writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _drop(self, unwanted: Callable[[int], bool]) -> None:
        """Remove saved steps, each manifest before its files, and what a process that was killed has left."""
        for step in filter(unwanted, _steps(self.folder)):
            _manifest(self.folder / str(step)).unlink(missing_ok=True)
        self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        whole = {str(step) for step in _steps(self.folder)}
        for path in self.folder.glob("[0-9]*"):
            unfinished = re.fullmatch(r"\d+(\.orbax-checkpoint-tmp.*)?", path.name)
            if self._writes and unfinished and path.name not in whole:
                shutil.rmtree(path, ignore_errors=True)


def saved_stacks(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every stack that was saved in a sweep's folder, newest first: its own folder and its runs' ids."""
    stacks = [(stack, saved_runs(stack)) for stack in _stack_folders(folder)]
    yield from sorted((pair for pair in stacks if pair[1]), key=lambda pair: -_changed(pair[0]))


def damaged_stacks(folder: Path) -> list[Path]:
    """Folders of a sweep's saved stacks that do not say which runs they hold."""
    return [stack for stack in _stack_folders(folder) if _steps(stack) and not saved_runs(stack)]


def saved_runs(stack: Path) -> list[str]:
    """Ids of the runs in the folder of a saved stack, in the order of the run axis; none where the folder,
    which is named after them, is another's."""
    runs = read_json(stack / RUNS).get("runs")
    if not isinstance(runs, list) or not all(map(is_name, runs)):
        return []
    return runs if _digest(runs) == stack.name else []


def restore(
    stack: Path,
    like: Any,
    *,
    damaged: Callable[[Path], None],
    agreed: Callable[[list[int]], list[int]] = list,
    anywhere: Callable[[bool], bool] = bool,
) -> Saved | None:
    """The newest state that is what was saved, in the form of `like`; None where there is none.

    A checkpoint that is not is handed to `damaged`. Processes that restore together pass how they come to
    agree: on what the first one says, and on whether a thing is so in any of them.

    Raises:
        OSError: the file system does not answer; that says nothing of the checkpoint.
    """
    import orbax.checkpoint as ocp

    for step in agreed(sorted(_steps(stack), reverse=True)):
        folder, state = stack / str(step), None
        histories = _histories(folder)
        if not anywhere(histories is None):
            try:
                args = ocp.args.StandardRestore(like)
                state = _checkpointer().restore(folder.resolve(), args=args)
            except Exception as error:  # whatever Orbax says of one that this version cannot read
                reason = _as_os_error(error, folder)
                if reason is not None and reason.errno not in NO_FILE:
                    raise reason from None
        if histories is not None and not anywhere(state is None):
            return Saved(state=state, histories=histories)
        damaged(folder)
    return None


def set_checkpoint_aside(checkpoint: Path) -> Path:
    """Rename a corrupt checkpoint and its manifest; returns where it is until its stack has ended."""
    set_aside(_manifest(checkpoint))
    return set_aside(checkpoint)


def _histories(checkpoint: Path) -> dict[str, Written] | None:
    """What the runs' histories were when a checkpoint was saved; None where it is not what was saved."""
    manifest = read_json(_manifest(checkpoint))
    try:
        if not manifest["files"] or manifest["files"] != _sums(checkpoint):
            return None
        return {run: Written(*map(int, values)) for run, values in manifest["histories"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _sums(checkpoint: Path) -> dict[str, int | None]:
    """The checksums of a checkpoint's files."""
    found: dict[str, int | None] = {}
    for parent, _, names in os.walk(checkpoint):
        for path in (Path(parent, name) for name in names):
            found[path.relative_to(checkpoint).as_posix()] = crc32_of(path)
    return found


def _manifest(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.json")


def _steps(stack: Path) -> list[int]:
    """Steps of which a stack's folder has a manifest."""
    return [int(path.stem) for path in stack.glob("*.json") if path.stem.isdecimal()]


def _stack_folders(folder: Path) -> list[Path]:
    return [path for path in (folder / "checkpoints").glob("*") if re.fullmatch("[0-9a-f]{12}", path.name)]


def _digest(runs: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(runs).encode()).hexdigest()[:12]


def _reserve(folder: Path, state: Any) -> None:
    """See that there is room for a state: Orbax's threads would each say on stderr that there is none.

    Raises:
        OSError: the disk is full, or a quota is used up.
    """
    import jax

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, int(1.1 * size) + ROOM_BYTES)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of file systems that cannot reserve
            raise OSError(error.errno, error.strerror, str(folder)) from None


def _changed(path: Path) -> float:
    with suppress(OSError):  # another worker has just removed it
        return path.stat().st_mtime
    return 0.0


def _as_os_error(error: Exception, path: Path) -> OSError | None:
    """The system's error behind one of Orbax's; TensorStore has its number in its text."""
    match = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    return OSError(number, os.strerror(number), str(path)) if number else None


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells each step, and what it raises as well
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())
