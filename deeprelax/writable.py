"""Whether a file can be written, asked before the work whose result it is to hold."""

from __future__ import annotations

from pathlib import Path


def make_writable(path: Path) -> None:
    """Make the folders of ``path`` and open it to write; what it holds stays, and a file that was not there is not.

    Raises:
        OSError: it cannot be written, or is something else than a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is there and is no file")
    new = not path.exists()
    with path.open("ab"):
        pass
    if new:
        path.unlink()


def check_written(path: Path, by: str) -> None:
    """For writers that keep their failures to themselves.

    Raises:
        OSError: there is no such file, or it is empty.
    """
    if not path.is_file() or path.stat().st_size == 0:
        raise OSError(f"{by} has written nothing to {path}")
