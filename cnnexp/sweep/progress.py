"""The progress of a sweep: a bar with an ETA from the first second, or plain lines without a terminal."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cnnexp.config.sections import find_leading_metric
from cnnexp.core.text import pluralize
from cnnexp.store.runs import Stop
from cnnexp.sweep.plan import COMPILE_SECONDS, Plan, Stack
from cnnexp.sweep.points import Cells
from cnnexp.training.schedule import estimate_flops, resolve_duration

# A first guess, corrected as soon as the first piece of training shows how fast this machine is.
GUESSED_FLOPS = 30e9  # floating-point operations a second
PRIOR_SECONDS = 5.0  # weight of the guess against the observed time
SILENCE_SECONDS = 60.0  # at most between two lines without a terminal

Rows = Mapping[str, Mapping[str, int | float]]


class SweepProgress:
    """Displays the progress of a sweep, with the time left estimated from the stacks trained so far.

    Args:
        plan: of the sweep.
        cells: its cells, which give the runs their names.
    """

    def __init__(self, plan: Plan, cells: Cells):
        self._cells, self._plan = cells, plan
        self._asked = {metric for run in plan.runs.values() for metric in run.train.metrics}
        self._total = sum(len(stack.runs) for stack in plan.stacks)
        flops = sum(
            plan.fractions[run_id] * estimate_flops(run)
            for stack in plan.stacks
            for run_id, run in stack.runs.items()
        )
        self._cost = COMPILE_SECONDS * len(plan.stacks) + flops / GUESSED_FLOPS
        self._done = self._failed = self._running = self._stopped = 0
        self._spent = self._partial = 0.0  # guessed seconds of ended stacks, and of the current one so far
        self._fraction = 0.0  # of the current stack
        self._latest = "starting"
        self._epoch = ""
        self._started = self._printed = time.monotonic()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[latest]}", style="dim", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            get_time=time.monotonic,
        )
        self._task = self._bar.add_task("", total=self._cost or 1.0, latest="")

    def __enter__(self) -> "SweepProgress":
        if self._plan.ended:
            self.print_line(
                f"already in the store: {pluralize(len(self._plan.ended), 'run')}; {self._total} to train"
            )
        if self._plan.stopped:
            self.print_line(
                f"stopped earlier by successive halving: {pluralize(len(self._plan.stopped), 'run')}"
            )
        if self._plan.stacks:
            self._show()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def print_line(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def show_start(self, stack: Stack) -> None:
        """Display that a stack is about to be compiled, or its program read from the cache."""
        self._running, self._partial, self._fraction, self._epoch = len(stack.runs), 0.0, 0.0, ""
        self._latest = f"{self._cells.common_name(stack.runs)}: compiling"
        self._show()

    def show_step(self, stack: Stack, step: int, last: int) -> None:
        """Display that a stack has reached a step out of `last`."""
        duration = resolve_duration(stack.config)
        since, until = stack.span.since, stack.span.until or last
        self._fraction = (step - since) / (until - since)
        self._partial = self._fraction * _seconds(stack)
        self._epoch = f" (epoch {duration.epochs(step):.3g}/{duration.epochs(last):.3g})"
        self._show()
        if not self._console.is_terminal and time.monotonic() - self._printed > SILENCE_SECONDS:
            self._print_state()

    def show_evaluation(self, stack: Stack, rows: Rows, ended: Sequence[str]) -> None:
        """Display the evaluation of a stack.

        Args:
            stack: which was evaluated.
            rows: the metrics of each run by its id.
            ended: ids of the runs that now have a result.
        """
        if ended:
            self._done += len(ended)
            self._running -= len(ended)
            for name, members in self._cells.group_runs(ended).items():
                if self._console.is_terminal:
                    self.print_line(f"{name}: {self._describe_rows([rows[run_id] for run_id in members])}")
        self._latest = f"{self._cells.common_name(stack.runs)}: {self._describe_rows(list(rows.values()))}"
        if self._running == 0:
            self._spent, self._partial = self._spent + _seconds(stack), 0.0
            if not self._console.is_terminal:
                self._print_state()
        self._show()

    def show_pause(self, stack: Stack) -> None:
        """Display that a stack has reached the end of its rung."""
        self._running, self._partial = 0, 0.0
        self._spent += _seconds(stack)
        self._show()

    def show_stops(self, stops: Mapping[str, Stop]) -> None:
        """Print how many runs successive halving has just stopped, by rung.

        Args:
            stops: Why runs were stopped, by their ids.
        """
        self._stopped += len(stops)
        places = Counter((stop.rung, stop.step, stop.rungs, stop.by) for stop in stops.values())
        for (rung, step, rungs, metric), number in sorted(places.items()):
            self.print_line(
                f"stopped {pluralize(number, 'run')} at rung {rung} of {rungs} (step {step:,}) by {metric}"
            )
        self._show()

    def show_failure(self, stack: Stack, error: str, file: Path) -> None:
        """Display that the runs of a stack still in progress ended without a result."""
        self._failed += self._running
        self._running, self._partial = 0, 0.0
        self._spent += _seconds(stack)
        self.print_line(f"failed: {self._cells.common_name(stack.runs)}: {error}; see {file}")
        self._show()

    def update_from_store(self, rows: Rows, *, running: int, failed: int) -> None:
        """Display the progress of workers in other processes.

        Args:
            rows: last metrics of the runs that have ended since the last call, by their ids.
            running: number of runs in progress.
            failed: number of runs that have failed.
        """
        self._done, self._running, self._failed = self._done + len(rows), running, failed
        self._spent, self._fraction = self._cost * (self._done + failed) / max(1, self._total), 0.0
        for name, members in self._cells.group_runs(rows).items():
            self._latest = f"{name}: {self._describe_rows([rows[run_id] for run_id in members])}"
            if self._console.is_terminal:
                self.print_line(self._latest)
        if not self._console.is_terminal and (rows or time.monotonic() - self._printed > SILENCE_SECONDS):
            self._print_state()
        self._show()

    def waiting_for(self, runs: int) -> None:
        """Display that the remaining runs are claimed by other workers."""
        if runs:
            self._latest = f"waiting for {pluralize(runs, 'run')} that other workers are training"
            self._show()

    def _show(self) -> None:
        self._bar.update(
            self._task,
            completed=self._spent + self._partial,
            description=self._describe_state(),
            latest=self._latest,
        )

    def _print_state(self) -> None:
        self._printed = time.monotonic()
        self.print_line(f"{self._describe_state()}, {self._latest}")

    def _describe_rows(self, rows: Sequence[Mapping[str, int | float]]) -> str:
        """Describe the mean of the leading metric on training and on test images."""
        metric = find_leading_metric(rows[0].keys(), self._asked)
        train, test = (
            sum(row[f"{split}/{metric}"] for row in rows) / len(rows) for split in ("train", "test")
        )
        name = "" if metric == "accuracy" else f" ({metric.replace('_', ' ')})"
        return f"train {train:.3f} test {test:.3f}{name}"

    def _describe_state(self) -> str:
        """Describe runs done, failed and running, the current stack's epoch, throughput and time left."""
        elapsed = time.monotonic() - self._started
        parts = [f"{self._done}/{pluralize(self._total, 'run')}"]
        parts += [f"{self._stopped} stopped"] * bool(self._stopped)
        parts += [f"{self._failed} failed"] * bool(self._failed)
        if self._running:
            parts.append(f"{self._running} running{self._epoch}")
        trained = self._done + self._running * self._fraction
        if trained:
            parts.append(f"{3600 * trained / elapsed:,.0f} runs/h")
        spent = self._spent + self._partial
        slowness = (PRIOR_SECONDS + elapsed) / (PRIOR_SECONDS + spent) if spent else 1.0
        left = int(max(0.0, self._cost - spent) * slowness)
        return ", ".join([*parts, f"ETA {left // 60}:{left % 60:02d}"])


def _seconds(stack: Stack) -> float:
    return COMPILE_SECONDS + stack.flops / GUESSED_FLOPS
