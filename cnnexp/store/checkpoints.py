"""Checkpoints of a stack, from which an interrupted sweep resumes.

The folder of a stack has one of Orbax's folders for each saved step. Beside it, and written last, is the
manifest of the step: the checksums of all its files, and how far the histories of the runs had been written.
A step without a manifest was not saved; a step whose files differ from its manifest is corrupt.
The best weights so far of runs that keep these lie in the same folder, one file for each run and step.
"""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnexp.store.files import NO_FILE, compute_crc32, is_name, read_json, reserve_space, write_json
from cnnexp.store.runs import OWN_CRC32, FilePrefix, compute_own_crc32, move_corrupt
from cnnexp.store.weights import Weights, read_weights, write_weights

KEPT_CHECKPOINTS = 2  # of a stack
OVERHEAD_BYTES = 1 << 20  # of a checkpoint beyond its arrays, at most
RUNS = "runs.json"  # in the folder of a stack: the ids of its runs, in the order of the run axis


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state, and how far the history of each run had been written when the state was saved."""

    state: Any
    histories: Mapping[str, FilePrefix]


class StackCheckpoints:
    """The last checkpoints of one stack, each complete or absent.

    Args:
        folder: the sweep's.
        runs: ids of the stack's runs, in the order of the run axis.
        since: the step from which the stack resumes, so that later checkpoints are dropped; None: the stack
            starts anew.
        writes: whether this process is the primary one of those that save together.
    """

    def __init__(self, folder: Path, runs: Sequence[str], *, since: int | None = None, writes: bool = True):
        self.folder = folder / "checkpoints" / _digest(runs)
        self._runs, self._writes = list(runs), writes
        self._since, self._initialized = since, False

    def save(
        self,
        step: int,
        state: Any,
        histories: Mapping[str, FilePrefix] | None = None,
        best: Mapping[str, Weights] | None = None,
    ) -> None:
        """Save a state and drop all but the two newest checkpoints.

        Args:
            step: the training step.
            state: the stacked training state, a pytree of arrays.
            histories: how far the history of each run has been written.
            best: the best weights so far of the runs that keep these.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        import jax
        import orbax.checkpoint as ocp

        folder = self.folder / str(step)
        if self._writes and not self._initialized:
            write_json(self.folder / RUNS, {"runs": self._runs})
            self._drop(lambda saved: self._since is None or saved > self._since)
            self._drop_best_after(self._since)
            self._initialized = True
        if self._writes:
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            # Without space, each of Orbax's threads would report its error on stderr.
            reserve_space(self.folder, int(1.1 * size) + OVERHEAD_BYTES)
            for run_id, weights in (best or {}).items():  # before the checkpoint that needs them
                path = _best_file(self.folder, run_id, weights.step)
                if not path.exists():
                    write_weights(path, weights, run_id)
        try:
            _checkpointer().save(folder.resolve(), args=ocp.args.StandardSave(state), force=True)
        except Exception as error:
            self._delete_unfinished_steps()
            raise _as_os_error(error, folder) or error from None
        if self._writes:
            prefixes = {run: [prefix.size, prefix.crc32] for run, prefix in (histories or {}).items()}
            manifest = {"files": _checksums(folder), "histories": prefixes}
            write_json(_manifest(folder), manifest | {OWN_CRC32: compute_own_crc32(manifest)})
            oldest = sorted(_list_steps(self.folder))[-KEPT_CHECKPOINTS:][0]
            self._drop(lambda saved: saved < oldest)
            self._drop_best(best or {})

    def delete(self) -> None:
        """Delete all checkpoints of a stack that has ended, as its results are in the store."""
        if self._writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _drop(self, unwanted: Callable[[int], bool]) -> None:
        """Remove saved steps, each manifest before its files, and the remains of killed processes."""
        for step in filter(unwanted, _list_steps(self.folder)):
            _manifest(self.folder / str(step)).unlink(missing_ok=True)
        self._delete_unfinished_steps()

    def _drop_best_after(self, step: int | None) -> None:
        """Remove best weights of an earlier attempt that went beyond the step from which this one resumes."""
        for path in self.folder.glob("best-*.safetensors"):
            number = path.stem.rpartition("-")[2]
            if step is None or not number.isdecimal() or int(number) > step:
                path.unlink(missing_ok=True)

    def _drop_best(self, best: Mapping[str, Weights]) -> None:
        """Remove best weights that no checkpoint needs: those that had been surpassed by the oldest one."""
        oldest = min(_list_steps(self.folder), default=0)
        for run_id in best:
            steps = sorted(
                int(path.stem.rpartition("-")[2])
                for path in self.folder.glob(f"best-{run_id}-*.safetensors")
                if path.stem.rpartition("-")[2].isdecimal()
            )
            needed = [step for step in steps if step <= oldest][-1:]
            for step in steps:
                if step < oldest and step not in needed:
                    _best_file(self.folder, run_id, step).unlink(missing_ok=True)

    def _delete_unfinished_steps(self) -> None:
        """Delete the folders of steps without a manifest, which a killed process left behind."""
        complete = {str(step) for step in _list_steps(self.folder)}
        for path in self.folder.glob("[0-9]*"):
            unfinished = re.fullmatch(r"\d+(\.orbax-checkpoint-tmp.*)?", path.name)
            if self._writes and unfinished and path.name not in complete:
                shutil.rmtree(path, ignore_errors=True)


def iterate_stacks(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """List the stacks that have checkpoints in a sweep's folder, newest first.

    Yields:
        The folder of a stack and the ids of its runs.
    """
    stacks = [(stack, read_stack_runs(stack)) for stack in _stack_folders(folder)]
    yield from sorted((pair for pair in stacks if pair[1]), key=lambda pair: -_modification_time(pair[0]))


def read_best_weights(stack: Path, run_id: str, step: int) -> Weights | None:
    """Read the weights that a run had at its best step so far.

    Returns:
        The weights; None where they were not saved, or are corrupt.
    """
    weights = read_weights(_best_file(stack, run_id, step), run_id)
    return weights if weights and weights.step == step else None


def has_checkpoint(stack: Path) -> bool:
    """Return whether a state of a stack was saved, given the folder of the stack."""
    return bool(_list_steps(stack))


def list_corrupt_stacks(folder: Path) -> list[Path]:
    """List the folders of stacks that have checkpoints but do not name their runs."""
    return [stack for stack in _stack_folders(folder) if _list_steps(stack) and not read_stack_runs(stack)]


def read_stack_runs(stack: Path) -> list[str]:
    """Read the ids of the runs of a stack.

    Returns:
        The ids in the order of the run axis; none where the folder, whose name is a digest of the ids,
        belongs to other runs.
    """
    runs = read_json(stack / RUNS).get("runs")
    if not isinstance(runs, list) or not all(map(is_name, runs)):
        return []
    return runs if _digest(runs) == stack.name else []


def restore(
    stack: Path,
    template: Any,
    *,
    on_corrupt: Callable[[Path], None],
    broadcast: Callable[[list[int]], list[int]] = list,
    any_process: Callable[[bool], bool] = bool,
) -> Checkpoint | None:
    """Restore the newest checkpoint of a stack that is not corrupt.

    Args:
        stack: the folder of the stack.
        template: a state of the same structure, shapes and types.
        on_corrupt: called with the folder of each corrupt checkpoint on the way.
        broadcast: gives all processes that restore together the value of the primary one.
        any_process: tells all processes whether a value is true in any of them.

    Returns:
        The checkpoint; None where there is none.

    Raises:
        OSError: the file system does not answer, which is no sign that a checkpoint is corrupt.
    """
    import orbax.checkpoint as ocp

    for step in broadcast(sorted(_list_steps(stack), reverse=True)):
        folder, state = stack / str(step), None
        histories = _read_histories(folder)
        if not any_process(histories is None):
            try:
                args = ocp.args.StandardRestore(template)
                state = _checkpointer().restore(folder.resolve(), args=args)
            except Exception as error:  # whatever Orbax raises for a checkpoint that this version cannot read
                reason = _as_os_error(error, folder)
                if reason is not None and reason.errno not in NO_FILE:
                    raise reason from None
        if histories is not None and not any_process(state is None):
            return Checkpoint(state=state, histories=histories)
        on_corrupt(folder)
    return None


def move_corrupt_checkpoint(checkpoint: Path) -> Path:
    """Rename a corrupt checkpoint and its manifest.

    Returns:
        The new path of the checkpoint, where it stays until its stack has ended.
    """
    move_corrupt(_manifest(checkpoint))
    return move_corrupt(checkpoint)


def _read_histories(checkpoint: Path) -> dict[str, FilePrefix] | None:
    """Read how far each run's history had been written; None where the checkpoint is corrupt."""
    manifest = read_json(_manifest(checkpoint))
    try:
        if not manifest["files"] or manifest["files"] != _checksums(checkpoint):
            return None
        # Manifests written by earlier versions have no checksum of themselves.
        is_earlier = manifest.keys() == {"files", "histories"}
        if not is_earlier and manifest.get(OWN_CRC32) != compute_own_crc32(manifest):
            return None
        return {run: FilePrefix(*map(int, values)) for run, values in manifest["histories"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _checksums(checkpoint: Path) -> dict[str, int | None]:
    checksums: dict[str, int | None] = {}
    for parent, _, names in os.walk(checkpoint):
        for path in (Path(parent, name) for name in names):
            checksums[path.relative_to(checkpoint).as_posix()] = compute_crc32(path)
    return checksums


def _best_file(stack: Path, run_id: str, step: int) -> Path:
    return stack / f"best-{run_id}-{step}.safetensors"


def _manifest(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.json")


def _list_steps(stack: Path) -> list[int]:
    """List the steps for which the folder of a stack has a manifest."""
    return [int(path.stem) for path in stack.glob("*.json") if path.stem.isdecimal()]


def _stack_folders(folder: Path) -> list[Path]:
    return [path for path in (folder / "checkpoints").glob("*") if re.fullmatch("[0-9a-f]{12}", path.name)]


def _digest(runs: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(runs).encode()).hexdigest()[:12]


def _modification_time(path: Path) -> float:
    with suppress(OSError):  # another worker has just removed it
        return path.stat().st_mtime
    return 0.0


def _as_os_error(error: Exception, path: Path) -> OSError | None:
    """Extract the system's error behind one of Orbax's; TensorStore has its number in its text."""
    match = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    return OSError(number, os.strerror(number), str(path)) if number else None


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs each step, and all that it raises
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())
