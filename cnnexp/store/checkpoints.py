"""The state of a stack on disk, from which an interrupted sweep goes on."""

import errno
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cnnexp.store.atomic import read_json, write_json
from cnnexp.store.guard import is_name

KEPT = 2  # checkpoints of a stack
OUT_OF_REACH = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES)  # of files that may well be whole


class StackCheckpoints:
    """The last checkpoints of one stack, written by Orbax: whole or absent.

    Args:
        folder: the sweep's.
        runs: ids of the stack's runs, in the order of the run axis.
        writes: whether this process is the first of those that save together.
    """

    def __init__(self, folder: Path, runs: Sequence[str], *, writes: bool = True):
        digest = hashlib.sha256(" ".join(runs).encode()).hexdigest()[:12]
        self.folder = folder / "checkpoints" / digest
        self._runs, self._writes = list(runs), writes
        self._manager: Any = None

    def save(self, step: int, state: Any) -> None:
        """Keep a state; the oldest beyond two is dropped."""
        import orbax.checkpoint as ocp

        if self._manager is None:
            if self._writes:
                write_json(self.folder / "runs.json", {"runs": self._runs})
            self._manager = _manager(self.folder)
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def delete(self) -> None:
        """The stack has ended: its results are in the store."""
        if self._manager is not None:
            self._manager.close()
        if self._writes:
            shutil.rmtree(self.folder, ignore_errors=True)


def saved_stacks(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every stack that was saved in a sweep's folder, newest first: its own folder and its runs' ids."""
    files = list((folder / "checkpoints").glob("*/runs.json"))
    for file in sorted(files, key=lambda path: -path.parent.stat().st_mtime):
        yield file.parent, saved_runs(file.parent)


def saved_runs(stack: Path) -> list[str]:
    """Ids of the runs in the folder of a saved stack, in the order of the run axis."""
    runs = read_json(stack / "runs.json").get("runs", [])
    return runs if isinstance(runs, list) and all(map(is_name, runs)) else []


def restore(
    stack: Path,
    like: Any,
    *,
    damaged: Callable[[Path], None],
    agreed: Callable[[list[int]], list[int]] = list,
    anywhere: Callable[[bool], bool] = bool,
) -> Any:
    """The newest state that can be read, in the form of `like`; None where there is none.

    A checkpoint that cannot be read is handed to `damaged`. Processes that restore together pass how they
    come to agree: on what the first one says, and on whether a thing is so in any of them.

    Raises:
        Exception: Orbax's, where the file system does not answer; that says nothing of the checkpoint.
    """
    import orbax.checkpoint as ocp

    with _manager(stack) as manager:
        for step in agreed(sorted(manager.all_steps(), reverse=True)):
            state = None
            try:
                state = manager.restore(step, args=ocp.args.StandardRestore(like))
            except Exception as error:  # whatever Orbax says of a file that is not what it wrote
                if _is_out_of_reach(error):
                    raise
            if not anywhere(state is None):
                return state
            damaged(stack / str(step))
    return None


def _is_out_of_reach(error: Exception) -> bool:
    """TensorStore has the system's error number in its text."""
    own = {error.errno} if isinstance(error, OSError) else set[int | None]()
    return any(number in own or f"os_error_code='{number}'" in str(error) for number in OUT_OF_REACH)


def _manager(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step of every save
    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.resolve(), options=options)
