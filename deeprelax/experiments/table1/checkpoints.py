"""The state of a run in a file: a line with the SHA-256 of the rest, and what ``torch.save`` wrote.

torch's reader notices neither a flipped weight nor a flipped counter.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeprelax.files import write_bytes


class StoreError(Exception):
    """A stored run cannot be used; the message names the file and says what to do."""


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file, at once."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    checksum = hashlib.sha256(body).hexdigest().encode()
    write_bytes(path, checksum + b"\n" + body)


def read(path: Path) -> dict[str, Any]:
    """What was written; tensors on the CPU.

    Raises:
        StoreError: some byte is not what it was.
    """
    checksum, _, body = path.read_bytes().partition(b"\n")
    again = "remove it to begin that run again"
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise StoreError(f"{path} is damaged: its SHA-256 is not the one in its first line; {again}")
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # whole, and yet no checkpoint: whatever torch makes of it
        raise StoreError(f"{path} cannot be read: {error}; {again}") from error
    return content


def digest(state: Any) -> str:
    """16 hexadecimal digits of the SHA-256 over every bit of nested tensors and numbers."""
    found = hashlib.sha256()
    _feed(found, state)
    return found.hexdigest()[:16]


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        found.update(f"dict {len(value)}".encode())
        for key, of_key in value.items():
            found.update(repr(key).encode())
            _feed(found, of_key)
    elif isinstance(value, list | tuple):
        found.update(f"list {len(value)}".encode())
        for each in value:
            _feed(found, each)
    else:
        found.update(repr(value).encode())
