"""Output that survives a full disk, a closed pipe or an ASCII terminal; Ctrl-C; and the remaining time."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# What is printed where the encoding lacks a character; "?" for others.
SPELLED = {
    **{"±": "+-", "×": "x", "µ": "u", "…": "...", "′": "'", "·": "*", "−": "-", "√": "sqrt", "∇": "grad "},
    **{"η": "eta", "γ": "gamma", "β": "beta", "λ": "lambda", "ρ": "rho", "⁻¹": "^-1", "⁻": "^-", "¹": "1", "₀": "0"},
    **{"↑": "^", "↓": "v"},
}


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(SPELLED.get(character, "?") for character in lacking), error.end


codecs.register_error("deeprelax.spell", _spell)


class _Guarded(io.RawIOBase):
    """Passes bytes on until that fails, then discards the rest."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()

    def write(self, content: Any) -> int:
        if self.failure is None:
            try:
                return self._raw.write(content)
            except OSError as error:
                self.failure = error
        return len(content)


@contextlib.contextmanager
def guarded_output() -> Iterator[Callable[[], OSError | None]]:
    """Inside, writing to ``sys.stdout`` raises nothing, whether the reader of a pipe has gone, the device is full or
    its encoding lacks a character: what is printed must not cost the run that prints it. Yields a function that returns
    the first failure."""
    before = sys.stdout
    buffer = getattr(before, "buffer", None)
    if buffer is None:
        yield lambda: None
        return
    with contextlib.suppress(OSError):
        before.flush()
    raw = _Guarded(getattr(buffer, "raw", buffer))
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=before.encoding, errors="deeprelax.spell", line_buffering=True
    )

    def failure() -> OSError | None:
        sys.stdout.flush()
        return raw.failure

    try:
        yield failure
    finally:
        sys.stdout.flush()
        sys.stdout = before


@contextlib.contextmanager
def handling(handler: Any) -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM (of schedulers, containers, torchrun) and SIGHUP (of a terminal that goes) are for
    ``handler``. Outside of the main thread, and for a signal that is ignored, nothing changes."""
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    before = {number: signal.signal(number, handler) or signal.SIG_DFL for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """For the writing of results: these signals are ignored inside."""
    return handling(signal.SIG_IGN)


class Interruptions:
    """A handler of signals. The first raises KeyboardInterrupt, and later ones are ignored, so that results can be
    written and reported.

    Attributes:
        number: the last signal received, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._message = ""

    def __call__(self, number: int, frame: object) -> None:
        """Handle the signal."""
        first, self.number = not self.number, number
        if first and self._message:
            with contextlib.suppress(OSError):  # no buffer, for the handler may interrupt a print
                os.write(2, f"\n{self._message}\n".encode("ascii", "replace"))
            return
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def asking(self, message: str) -> Iterator[Callable[[], bool]]:
        """Inside, the first signal prints ``message`` to standard error and makes the yielded function return True; the
        second one raises KeyboardInterrupt."""
        self._message = message
        try:
            yield lambda: self.number != 0
        finally:
            self._message = ""


class Pace:
    """Reports now and then how long something will take, where no progress bar can be drawn."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._every = seconds
        self._start = self._last = time.monotonic()
        self._from: float | None = None

    def left(self, fraction: float) -> str | None:
        """ "3 min left", ``seconds`` after it was last said; None in between. ``fraction`` is the part that is done."""
        now = time.monotonic()
        if self._from is None:
            self._start, self._from = now, fraction  # a run that is resumed does not begin at 0
        if now - self._last < self._every or not self._from < fraction < 1:
            return None
        self._last = now
        return f"{duration((now - self._start) * (1 - fraction) / (fraction - self._from))} left"


def duration(seconds: float) -> str:
    """Two digits are enough: "45 s", "21 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
