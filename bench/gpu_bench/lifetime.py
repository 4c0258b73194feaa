"""Processes that end together: a run that is stopped stops what it has started, whichever way it is stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGTERM, signal.SIGHUP)


def bound_to_parent() -> Callable[[], None]:
    """For ``subprocess.Popen(preexec_fn=...)``: on Linux the kernel kills the child when the thread that started it is
    gone, SIGKILL included. Without it a killed run leaves children on the GPU: they have sessions of their own."""
    # Found before the fork: in the child, beside threads that no longer run, nothing may be loaded.
    libc, parent = ctypes.CDLL(None), os.getpid()

    def bind() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # gone before the kernel was told
            os._exit(1)

    return bind


@contextlib.contextmanager
def no_signals() -> Iterator[None]:
    """Around a fork: Python's hooks of it swallow exceptions, and with them the signal. Afterwards it comes through."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unwind_on_signals() -> None:
    """SIGTERM and SIGHUP raise SystemExit, so that ``finally`` and ``with`` stop the children and save the record. One
    that is ignored stays so: under nohup."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in STOPS:  # a second one must not interrupt that
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in STOPS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, stop)
