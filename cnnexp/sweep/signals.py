"""Signals that ask a sweep to stop, which it does after saving everything."""

import signal
import threading
from types import FrameType, TracebackType

REQUEUE = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again later"
# SIGINT from a person; the others from schedulers, which end a job or warn it of its time limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(Exception):
    """The sweep was asked to stop, and everything is saved; `signal` is the number of the signal."""

    def __init__(self, signal: int | None = None):
        super().__init__("interrupted")
        self.signal = signal


class ProcessLost(Interrupted):
    """One of several processes that train together has died; the last checkpoint is kept."""


class StopSignals:
    """A context in which the first signal sets the event `asked`, and a second has its usual effect.

    Attributes:
        asked: whether a signal has asked to stop.
        signal: its number.
    """

    def __init__(self):
        self.asked = threading.Event()
        self.signal: int | None = None
        self._handlers = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def raise_if_asked(self) -> None:
        """Raise `Interrupted` if a signal has asked to stop; call this where everything is saved."""
        if self.asked.is_set():
            raise Interrupted(self.signal)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.asked.set()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
