"""The runs of a sweep that have no result, or one that diverged or cannot be read."""

from collections.abc import Sequence
from pathlib import Path

from cnnexp.analysis.cell_names import name_cells
from cnnexp.core.text import markdown_code, markdown_text
from cnnexp.store.runs import StoredRun, describe_fault, read_error_line

MAX_FAILURES = 20  # listed in a report


def list_failures(runs: Sequence[StoredRun], corrupt: Sequence[Path]) -> list[str]:
    """List the runs without a result, or whose result diverged or cannot be read, as Markdown.

    Args:
        runs: All runs of a sweep that can be read.
        corrupt: The corrupt files of the others.

    Returns:
        One line per run: its folder, its cell and seed, and the reason.
    """
    lines = [
        f"{markdown_code(file.parent.name)} corrupt: {markdown_code(file.name)} ({describe_fault(file)})"
        for file in corrupt
    ]
    failed = [run for run in runs if run.status not in ("finished", "stopped")]
    cells = name_cells(failed[0].folder.parent) if failed else {}
    for run in failed:
        step = run.summary.get("diverged_step")
        diverged = f"the loss is not finite from step {step} on" if step is not None else ""
        reason = read_error_line(run.folder) or diverged
        name = f"{cells.get(run.run_id, '')} seed {run.config.get('seed')}"
        status = run.status + (reason and f": {reason}")
        lines.append(f"{markdown_code(run.run_id)} {markdown_text(name)}, {markdown_text(status)}")
    omitted = len(lines) - MAX_FAILURES
    return lines[:MAX_FAILURES] + ([f"… and {omitted:,} more"] if omitted > 0 else [])
