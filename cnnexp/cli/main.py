"""The command `cnnexp`: its subcommands, and how errors are printed."""

import gc
import os
import sys

import click

from cnnexp.cli.commands import RESUME, Group
from cnnexp.cli.options import make_version_option
from cnnexp.core.errors import UsageError
from cnnexp.core.terminal import CLOSED_PIPE, DISK_ERROR, describe_disk_error, is_disk_error, prepare_terminal

USAGE_ERROR, FAILED, INTERRUPTED = 2, 1, 130
COLLECTION_THRESHOLD = 20_000  # new objects between two garbage collections; by default, 700 to 2,000

COMMANDS = {
    "run": ("cnnexp.cli.sweeps:run", "Train one run or a sweep."),
    "plan": (
        "cnnexp.cli.sweeps:plan",
        "Show what a sweep would train, cell by cell, and how long it would take.",
    ),
    "show": (
        "cnnexp.cli.sweeps:show",
        "Describe networks layer by layer, with pictures of layers and images.",
    ),
    "wandb-sweep": ("cnnexp.cli.sweeps:wandb_sweep", "Run a sweep through W&B agents."),
    "report": ("cnnexp.cli.stored:report", "Write the table, figures and verdicts of a sweep."),
    "results": ("cnnexp.cli.stored:results", "Print the runs of a sweep, or its cells, as a table."),
    "watch": (
        "cnnexp.cli.watch:watch",
        "Show the progress, cells and learning curves of a sweep while it is trained.",
    ),
    "eval": (
        "cnnexp.cli.stored:evaluate",
        "Evaluate the trained networks of a sweep under other conditions.",
    ),
    "probe": (
        "cnnexp.cli.stored:probe",
        "Measure equivariance, kernels and receptive fields of the trained networks of a sweep.",
    ),
    "compare": (
        "cnnexp.cli.stored:compare",
        "Compare two sweeps: which numbers changed beyond their intervals.",
    ),
    "join": (
        "cnnexp.cli.stored:join",
        "Print the claims of several sweeps on one table, with means over data sets.",
    ),
    "sync": ("cnnexp.cli.stored:sync", "Upload the runs of a sweep that W&B lacks."),
    "dashboard": ("cnnexp.cli.stored:dashboard", "Create a W&B workspace and report of a sweep."),
    "data": ("cnnexp.cli.data:command", "Prepare image sets, and list those that are prepared."),
    "new": ("cnnexp.cli.new:command", "Write a small project: an experiment, a network, images and tests."),
    "completion": (
        "cnnexp.cli.completion:command",
        "Print a script that makes a shell complete commands.",
    ),
}
HELP = """\
Why do convolutions work? Train sweeps over kernel size, stride and weight tying, and report the results.

\b
  cnnexp run experiment=why_convolutions    train the sweep that answers the question
  cnnexp watch why_convolutions             its progress, table and learning curves, live
  cnnexp report why_convolutions            its table, figures and verdicts
  cnnexp results why_convolutions --by      the same numbers as CSV, JSON, LaTeX, Markdown or Parquet
  cnnexp run --help                         every key, with its default and what it means
  cnnexp plan seed=range(100)               what a sweep would train and how long it would take
"""


cnnexp = Group(COMMANDS, name="cnnexp", help=HELP, params=[make_version_option()])


def main() -> None:
    """Run the command of this process: errors that a user can cause are one line and exit code 2."""
    gc.set_threshold(COLLECTION_THRESHOLD)  # imports make many objects, all of which stay
    prepare_terminal()
    try:
        code = _invoke(sys.argv[1:])
        sys.stdout.flush()
    except UsageError as error:
        from cnnexp.store.files import replace_unprintable

        print(f"cnnexp: {replace_unprintable(str(error))}", file=sys.stderr)
        code = USAGE_ERROR
    except KeyboardInterrupt:
        print(f"\ncnnexp: interrupted; {RESUME}", file=sys.stderr)
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        code = CLOSED_PIPE
    except Exception as error:
        if isinstance(error, OSError) and is_disk_error(error):
            print(f"cnnexp: {describe_disk_error(error)}", file=sys.stderr)
            _leave_other_processes(DISK_ERROR)
            sys.exit(DISK_ERROR)
        _leave_other_processes(FAILED, error)
        raise
    if code:
        _leave_other_processes(code)
    sys.exit(code)


def _invoke(words: list[str]) -> int:
    """Run a command, and return its exit code."""
    if instruction := os.environ.get("_CNNEXP_COMPLETE"):
        from cnnexp.cli.completion import print_completions

        return print_completions(cnnexp, instruction)
    try:
        # Not `cnnexp.main()`, which has its own messages and exit codes for a closed pipe and for Ctrl-C.
        with cnnexp.make_context("cnnexp", words) as context:
            return cnnexp.invoke(context) or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code


def _leave_other_processes(code: int, error: Exception | None = None) -> None:
    """Tell the other processes of a training that this one ends, and with which exit code."""
    if "jax" in sys.modules:
        from cnnexp.sweep.multiprocess import leave_processes

        leave_processes(code, error)
