"""A sweep's progress: a bar with an ETA from the first second, or plain lines where there is no terminal."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cnnexp.sweep.stacks import Stack

# A first guess, corrected as soon as the first evaluation tells how fast this machine is.
GUESSED_FLOPS = 30e9  # floating-point operations a second
COMPILE_SECONDS = 2.5  # of one stack
PRIOR_SECONDS = 5.0  # the weight of the guess against what was seen


class SweepProgress:
    """Knows what each stack should take, and learns from what it took."""

    def __init__(self, stacks: Sequence[Stack], *, done: int):
        self.stacks = list(stacks)
        self._done_before = done
        self._runs = sum(len(stack.runs) for stack in self.stacks)
        self._runs_done = 0
        self._seconds = [COMPILE_SECONDS + stack.cost / GUESSED_FLOPS for stack in self.stacks]
        self._predicted_done = 0.0
        self._started = time.monotonic()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[eta]}"),
            TextColumn("[dim]{task.fields[news]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            get_time=time.monotonic,
        )
        self._task = self._bar.add_task("", total=sum(self._seconds) or 1.0, eta="", news="starting")

    def __enter__(self) -> "SweepProgress":
        if self._done_before:
            self.tell(f"{self._done_before} runs are in the store already; {self._runs} to train")
        if self.stacks:
            self._show("starting")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def start(self, stack: Stack) -> None:
        """A stack is about to be compiled."""
        self._show(f"{_cell(stack)}: compiling")

    def evaluated(self, stack: Stack, rows: Sequence[dict[str, int | float]]) -> None:
        """The runs of a stack were evaluated: a row each."""
        share = rows[0]["step"] / max(1, _last_step(stack))
        index = self.stacks.index(stack)
        self._predicted_done = sum(self._seconds[:index]) + share * self._seconds[index]
        if share >= 1:
            self._runs_done += len(stack.runs)
        train, test = (
            sum(row[key] for row in rows) / len(rows) for key in ("train/accuracy", "test/accuracy")
        )
        news = f"{_cell(stack)}: train {train:.3f} test {test:.3f}"
        self._show(news)
        if share >= 1 and not self._console.is_terminal:
            self.tell(f"{self._runs_done}/{self._runs} runs, {self._eta()}, {news}")

    def _show(self, news: str) -> None:
        description = f"{self._runs_done}/{self._runs} runs"
        self._bar.update(
            self._task, completed=self._predicted_done, description=description, eta=self._eta(), news=news
        )

    def _eta(self) -> str:
        elapsed = time.monotonic() - self._started
        slowness = (PRIOR_SECONDS + elapsed) / (PRIOR_SECONDS + self._predicted_done)
        if not self._predicted_done:
            slowness = 1.0
        left = max(0.0, sum(self._seconds) - self._predicted_done) * slowness
        return f"ETA {int(left) // 60}:{int(left) % 60:02d}"


def _last_step(stack: Stack) -> int:
    from cnnexp.training.schedule import duration_of

    return duration_of(stack.runs[0]).steps


def _cell(stack: Stack) -> str:
    """What a person tells stacks apart by."""
    config = stack.runs[0]
    tying = getattr(config.model, "tying", config.model.name)
    size = config.data.train_size or "all"
    return f"{tying}, {size} images"
