"""Reading files of JSON lines: whole, or refused with the file and the line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NUMBER = int | float


def read(path: Path, check: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
    """The objects of the file. A last line that was cut off in the middle is left out.

    Args:
        check: raises ValueError or TypeError for an object that does not belong there.

    Raises:
        ValueError: a line is damaged; the message names file and line.
    """
    lines = []
    content = path.read_bytes()
    texts = content.splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise TypeError("it is not an object")
            check(line)
        except (TypeError, ValueError) as error:
            if number == len(texts) and not content.endswith(b"\n"):
                break
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        lines.append(line)
    return lines


def check_kinds(content: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """ValueError unless ``content`` has every name of ``kinds``, with a value of that type."""
    for name, kind in kinds.items():
        if name not in content:
            raise ValueError(f"it lacks {name}")
        if not isinstance(content[name], kind):
            raise ValueError(f"{name} is {content[name]!r}")
