"""Files are complete or absent, and whoever cannot write one says which."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from deeprelax import files

SOURCES = Path(files.__file__).parent
WRITERS: list[Callable[[Path], None]] = [
    lambda path: files.write_text(path, "new" * 10_000),
    lambda path: files.write_bytes(path, b"new" * 10_000),
    lambda path: files.write_json(path, ["new"] * 10_000),
    lambda path: files.write_picture(path, Figure(), dpi=150),
]
every_writer = pytest.mark.parametrize("write", WRITERS)


def _write_on_a_full_disk(write: Callable[[Path], None], path: Path, told: multiprocessing.SimpleQueue) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        write(path)
    except OSError as error:
        told.put(str(error))
    else:
        told.put("")


def on_a_full_disk(write: Callable[[Path], None], path: Path) -> str:
    """What the OSError says when no file may grow beyond 1,000 bytes, as on a disk with 1,000 bytes left, or "".

    In another process, because the limit would hold for the test runner's files as well.
    """
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    process = context.Process(target=_write_on_a_full_disk, args=(write, path, told))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return str(told.get())


@every_writer
def test_a_file_and_its_folder_are_written_and_nothing_else(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").stat().st_size > 1000
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "a.png"]


@every_writer
def test_a_full_disk_leaves_the_earlier_file_and_is_reported_by_name(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_text("earlier")
    assert str(path) in on_a_full_disk(write, path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_that_does_not_fit_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    assert str(path) in on_a_full_disk(lambda path: files.append_text(path, "line" * 1000), path)


def half_written(path: Path) -> None:
    with files.replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def test_an_interruption_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(KeyboardInterrupt):
        half_written(path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_files_left_by_a_killed_process_are_removed_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".writing-old", tmp_path / ".writing-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "a.png").write_text("half")
    yesterday = time.time() - files.LONGEST_WRITE - 1
    os.utime(old, (yesterday, yesterday))
    files.write_text(tmp_path / "b.txt", "new")
    assert sorted(tmp_path.iterdir()) == [new, tmp_path / "b.txt"]


def test_a_link_stays_a_link_to_the_new_content(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_check_creates_the_folder_only_and_keeps_an_existing_file(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "new" / "a.png")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "kept").write_text("kept")
    files.check_writable(tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_check_refuses_a_folder_as_file_and_if_asked_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        files.check_writable(tmp_path / "new" / "a.png", make_folder=False)
    assert not (tmp_path / "new").exists()
    with pytest.raises(OSError, match="exists and is not a file"):
        files.check_writable(tmp_path)


def test_results_are_written_in_this_one_place() -> None:
    direct = re.compile(
        r"(?<!files)\.(write_text|write_bytes|savefig)\(|open\([^)]*[\"'][wa]b?[\"']|(?<!write_)json\.dump\("
    )
    found = {
        f"{path.relative_to(SOURCES)}: {line.strip()}"
        for path in SOURCES.rglob("*.py")
        if path.name != "files.py" and "kernels" not in path.parts
        for line in path.read_text().splitlines()
        if direct.search(line)
    }
    assert found == set()
