"""``opt.state``: mappings that note when other code writes to them.

The tensors of the state are views of the flat buffers that the kernels update. Other code replaces them (offloading,
pruning, ``state.clear()``): a flag tells the optimizer, which copies the new ones before anything reads the state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


class Note:
    """Whether the state was written to from outside since the optimizer last looked."""

    __slots__ = ("written",)

    def __init__(self) -> None:
        self.written = False


def _noting(name: str, base: type) -> Callable[..., Any]:
    method = getattr(base, name)

    def write(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.note.written = True
        return method(self, *args, **kwargs)

    write.__name__ = name
    return write


WRITES = ("__delitem__", "__ior__", "clear", "pop", "popitem")


class Entry(dict[str, Any]):
    """The state of one parameter: name → tensor in the parameter's shape. Constructed like a ``dict``."""

    note = Note()  # its State's, once it is in one

    def put(self, name: str, value: Tensor) -> None:
        """Write without a note: the optimizer's own."""
        super().__setitem__(name, value)

    def drop(self, name: str) -> None:
        """Remove without a note, if it is there."""
        super().pop(name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class State(defaultdict[Any, Any]):
    """Parameter → its ``Entry``. Any mapping that is put in is copied into one. Constructed like a ``defaultdict``,
    whose factory is ignored. Values under keys that are not tensors stay as they are."""

    def __init__(self, default_factory: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.note = Note()
        self.update(*args, **kwargs)

    def __missing__(self, p: Tensor) -> Entry:
        return self.put(p)

    def put(self, p: Tensor) -> Entry:
        """A new, empty entry, without a note."""
        return self._put(p, {})

    def _put(self, p: Tensor, values: Mapping[str, Any]) -> Entry:
        entry = Entry(values)
        entry.note = self.note
        super().__setitem__(p, entry)
        return entry

    def drop(self, p: Tensor) -> None:
        """Remove without a note, if it is there."""
        super().pop(p, None)

    def __setitem__(self, p: Any, values: Any) -> None:
        self.note.written = True
        if isinstance(p, Tensor):
            self._put(p, values)
        else:
            super().__setitem__(p, values)

    def setdefault(self, p: Tensor, default: Any = None) -> Entry:
        """As ``dict.setdefault``."""
        if p not in self:
            self[p] = default or {}
        entry: Entry = self[p]
        return entry

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As ``dict.update``."""
        for p, values in dict(*args, **kwargs).items():
            self[p] = values

    def plain(self) -> dict[Any, Any]:
        """With entries that are plain dicts."""
        return {key: dict(value) if isinstance(value, Entry) else value for key, value in self.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return defaultdict, (dict, self.plain())


for _name in (*WRITES, "__setitem__", "setdefault", "update"):
    setattr(Entry, _name, _noting(_name, dict))
for _name in WRITES:
    setattr(State, _name, _noting(_name, defaultdict))
