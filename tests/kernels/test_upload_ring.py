"""A pinned buffer is written again only when the copy from it is over: on a machine without a GPU, with a device that
keeps a record in the place of one."""

from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deeprelax.kernels.device_table import RING, Upload

DEVICE = torch.device("meta")  # copies to it do nothing; whether they are over is a matter of events


class Device(TorchDispatchMode):
    """Notes in ``log`` who writes to which buffer, copies from it, and records or waits for which event.

    Attributes:
        stream: the current one.
        log: (what, number of the buffer or the event, stream).
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.stream = 0
        self.log: list[tuple[str, int, int]] = []
        self.upload = Upload(3, torch.int64, DEVICE)
        self._events = 0
        monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(Event=self._event))

    def _event(self) -> SimpleNamespace:
        number, self._events = self._events, self._events + 1

        def noting(what: str) -> Callable[..., None]:
            return lambda stream=None: self.log.append((what, number, self.stream if stream is None else stream))

        return SimpleNamespace(record=noting("record"), synchronize=noting("wait"))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.copy_.default:
            to, source = args[:2]
            what, host = ("copy", source) if to.device == DEVICE else ("write", to)
            slots = [host.data_ptr() == slot.data_ptr() for slot in self.upload._hosts]
            self.log.append((what, slots.index(True), self.stream))
        return function(*args, **(kwargs or {}))


def test_a_buffer_waits_for_the_event_recorded_after_its_own_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy and the event are both the current stream's, which may be another each time; the first round of the ring
    waits for nothing, and every later one for the event of that buffer's last copy, not for the newest."""
    device, expected = Device(monkeypatch), []
    for n in range(3 * RING + 1):
        device.stream = n % 3
        with device:
            device.upload(array("q", [n, n, n]))
        waits = [("wait", n - RING, n % 3)] if n >= RING else []
        expected += [*waits, ("write", n % RING, n % 3), ("copy", n % RING, n % 3), ("record", n, n % 3)]
    assert device.log == expected
    assert RING > 1


def test_what_has_not_changed_is_not_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    with device:
        for _ in range(3):
            device.upload(array("q", [1, 2, 3]))
    assert [what for what, *_ in device.log] == ["write", "copy", "record"]
