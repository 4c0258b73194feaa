"""Files that are complete or absent: the one place where results are written.

A file is written under another name in a new folder next to it and then renamed, so that an interruption or a full disk
leaves the file that was there before, or none.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib comes with the experiments only
    from matplotlib.figure import Figure


PARTIAL = ".writing-"  # begins the names of the new folders
LONGEST_WRITE = 24 * 3600  # seconds; an older folder was left by a process that was killed


def check_writable(path: Path, *, make_folder: bool = True) -> None:
    """Check, before a long computation, that its result can be written. An existing file keeps its content.

    Args:
        make_folder: make the folder of ``path`` if it is missing; otherwise a missing folder is an error.

    Raises:
        OSError: the file cannot be written.
    """
    if not make_folder and not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} exists and is not a file")
    with replacing(path, keep=True) as partial:
        partial.touch()


@contextlib.contextmanager
def replacing(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """A path to write to, with the name of ``path``; it replaces ``path`` if the block ends without an exception.

    Args:
        path: its folder is made if it is missing.
        keep: never replace it.

    Raises:
        OSError: of the block or of the renaming; the message names ``path``.
    """
    path = path.resolve() if path.is_symlink() else path
    try:
        _prepare(path.parent)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=PARTIAL, ignore_cleanup_errors=True) as folder:
            partial = Path(folder) / path.name
            yield partial
            if not keep:
                _sync(partial)
                partial.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _prepare(folder: Path) -> None:
    """Make it, and remove what processes that were killed in a write have left in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
    for left in folder.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):  # another process removes it, too
            if time.time() - left.stat().st_mtime > LONGEST_WRITE:
                shutil.rmtree(left)


def _sync(path: Path) -> None:
    """Without it a power failure can leave the new name without the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(path: Path, lock: Path) -> Iterator[None]:
    """Hold ``lock``, a file, which is made and removed.

    Raises:
        OSError: another process holds it; the message names ``path``, to which it writes.
    """
    import filelock  # which torch brings; not every command needs it

    held = filelock.FileLock(lock)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout as error:
        raise OSError(f"{path} is being written by another process; give another --out, or wait for it") from error
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows removes no open file
            lock.unlink(missing_ok=True)  # while it is held: who waits for it finds what has ended
        held.release()


def append_text(path: Path, text: str) -> None:
    """Add to the end of the file.

    Raises:
        OSError: the message names the file.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file by this content."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace the file by this text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any, **options: Any) -> None:
    """Replace the file by this content as JSON; ``options`` are of ``json.dumps``."""
    write_text(path, json.dumps(content, **{"indent": 1, **options}) + "\n")


def write_picture(path: Path, figure: Figure, **options: Any) -> None:
    """Replace the file by the figure, in the format of its suffix; ``options`` are of ``Figure.savefig``.

    Raises:
        OSError: it cannot be written, or drawn: LaTeX, which the user's matplotlibrc asks for, is missing, say.
    """
    with replacing(path) as partial:
        try:
            figure.savefig(partial, **options)
        except OSError:
            raise
        except Exception as error:  # whatever matplotlib and what it calls raise
            raise OSError(f"{path} cannot be drawn: {error}") from error
