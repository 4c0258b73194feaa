"""Files that are complete or absent: the one place where results are written.

A file is written under another name in a new folder next to it and then renamed, so that an interruption or a full disk
leaves the file that was there before, or none.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib comes with the experiments only
    from matplotlib.figure import Figure


def check_writable(path: Path, *, make_folder: bool = True) -> None:
    """Check, before a long computation, that its result can be written. An existing file keeps its content.

    Args:
        make_folder: make the folder of ``path`` if it is missing; otherwise a missing folder is an error.

    Raises:
        OSError: the file cannot be written.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.parent.is_dir():
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
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-", ignore_cleanup_errors=True) as folder:
            partial = Path(folder) / path.name
            yield partial
            if not keep:
                _sync(partial)
                partial.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _sync(path: Path) -> None:
    """Without it a power failure can leave the new name without the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """Replace the file by the figure, in the format of its suffix; ``options`` are of ``Figure.savefig``."""
    with replacing(path) as partial:
        figure.savefig(partial, **options)
