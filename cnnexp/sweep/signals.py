"""Signals that ask a sweep to stop, which it does after saving everything."""

import signal
import threading
from types import FrameType, TracebackType

REQUEUE = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again later"
# SIGINT from a person; the others from schedulers, which end a job or warn it of its time limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(Exception):
    """The sweep was asked to stop, and everything is saved; `signal_number` is that of the signal."""

    def __init__(self, signal_number: int | None = None):
        super().__init__("interrupted")
        self.signal_number = signal_number


class ProcessLost(Interrupted):
    """One of several processes that train together has died; the last checkpoint is kept."""


class StopSignals:
    """A context in which the first signal sets an event, and a second one has its usual effect.

    Attributes:
        stop_requested: the event that the first signal sets.
        signal_number: the number of that signal; None before.
    """

    def __init__(self):
        self.stop_requested = threading.Event()
        self.signal_number: int | None = None
        self._usual_handlers = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._usual_handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore_usual_handlers()

    def raise_if_stop_requested(self) -> None:
        """Raise `Interrupted` if a signal has asked to stop; call this where everything is saved."""
        if self.stop_requested.is_set():
            raise Interrupted(self.signal_number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self.stop_requested.set()
        self._restore_usual_handlers()  # a second Ctrl-C ends the process at once

    def _restore_usual_handlers(self) -> None:
        for number, handler in self._usual_handlers.items():
            signal.signal(number, handler)
        self._usual_handlers = {}
