"""Signals as a question that the training answers when it can be stopped without loss."""

import signal
import threading
from types import FrameType, TracebackType

REQUEUE = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again later"
# Those of a person and of a scheduler that ends a job, and those that it sends ahead of a time limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(Exception):
    """The sweep was asked to stop, and everything is saved; `signal` is what asked."""

    def __init__(self, signal: int | None = None):
        super().__init__("interrupted")
        self.signal = signal


class ProcessLost(Interrupted):
    """One of the processes that train together is gone; what was saved last is there."""


class Interruption:
    """A context in which a first signal sets `asked`; a second one does what it always did."""

    def __init__(self):
        self.asked = threading.Event()
        self.signal: int | None = None
        self._before = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def raise_if_asked(self) -> None:
        """Stop here, where nothing is in progress or all of it is saved."""
        if self.asked.is_set():
            raise Interrupted(self.signal)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.asked.set()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
