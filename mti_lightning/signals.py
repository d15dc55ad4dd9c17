"""SIGTERM and Ctrl-C: a command stops where nothing is lost, and says how it goes on."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, final

CODES: Final = {signal.SIGTERM: 143, signal.SIGINT: 130}  # as a shell says of them
_ONCE = 2.0  # seconds in which two signals are one: schedulers send it to each process, and again


@final
class Stopped(BaseException):
    """A signal stops the run; no `except Exception` on the way keeps it.

    Attributes:
        kept: The newest checkpoint, where there is one.
    """

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.signal, self.code = received, CODES[received]
        self.kept: Path | None = None


@final
class _Inbox:
    """The signal that was received, and whether it waits until someone asks for it."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.waits = False
        self._process, self._when = os.getpid(), 0.0

    def __call__(self, number: int, _: FrameType | None) -> None:
        received = signal.Signals(number)
        if os.getpid() != self._process:  # it loads pictures for us
            if received is signal.SIGTERM:
                _die_of(received)
        elif self.received is None:
            self.received, self._when = received, time.monotonic()
            if not self.waits:
                raise Stopped(received)
        elif time.monotonic() > self._when + _ONCE:
            _die_of(received)


_inbox: _Inbox | None = None


@contextmanager
def heeding() -> Iterator[None]:
    """Have the signals raise `Stopped`: at once, or from `check` where they are to `wait`."""
    global _inbox  # noqa: PLW0603  signals are the process's
    if _inbox is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _inbox = _Inbox()
    before = {number: signal.signal(number, _inbox) for number in CODES}
    try:
        yield
    except Exception as error:
        # Such as of a process that loads pictures, which the same signal ended before us.
        if _inbox.received is None:
            raise
        raise Stopped(_inbox.received) from error
    finally:
        _inbox = None
        for number, handler in before.items():
            signal.signal(number, handler)


def wait() -> None:
    """From here on a signal waits for `check`; also where others have put handlers of theirs."""
    if _inbox is not None:
        _inbox.waits = True
        for number in CODES:
            signal.signal(number, _inbox)


def wait_no_longer() -> None:
    """From here on a signal stops at once."""
    if _inbox is not None:
        _inbox.waits = False


def received() -> signal.Signals | None:
    """Return the signal that is to be heeded, if there was one."""
    return _inbox and _inbox.received


def end_with_parent() -> None:
    """End this process when the one that started it does, however that ends."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the others it waits for may never come

    threading.Thread(target=watch, daemon=True).start()


def _die_of(received: Any) -> None:
    signal.signal(received, signal.SIG_DFL)
    os.kill(os.getpid(), received)
