"""A run survives its terminal: a full disk, a closed pipe, ASCII, Ctrl-C."""

from __future__ import annotations

import ast
import io
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import deeprelax
from deeprelax.terminal import SPELLED, Interruptions, Pace, duration, guarded_output, handling


def test_characters_that_cannot_be_encoded_are_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    with guarded_output() as failure:
        print("0.50 ± 0.01, γ, 語")
        assert failure() is None
    assert screen.getvalue().decode() == "0.50 +- 0.01, gamma, ?\n"


def printed(path: Path) -> set[str]:
    """The characters of the strings of a source file; docstrings are printed for a command's help alone."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr) and path.parent.name != "cli"}
    strings = [node for node in nodes if isinstance(node, ast.Constant) and node not in docstrings]
    return {character for node in strings if isinstance(node.value, str) for character in node.value}


def test_every_character_that_a_command_prints_is_spelled() -> None:
    package = Path(deeprelax.__file__).parent
    sources = [path for name in ("cli", "benchmark", "experiments") for path in package.joinpath(name).rglob("*.py")]
    pages = {"reproduction.py"}  # writes a page of the docs, in UTF-8
    found = set().union(*(printed(path) for path in sources if path.name not in pages))
    assert "±" in found
    assert {character for character in found if not character.isascii()} <= set(SPELLED)


def test_a_failure_to_print_is_kept_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with guarded_output() as failure:
            for _ in range(3):
                print("lost", flush=True)
            assert failure().strerror == "No space left on device"
        assert sys.stdout is full


def test_an_output_for_text_only_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    with guarded_output() as failure:
        print("±")
        assert failure() is None
    assert screen.getvalue() == "±\n"


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest, heard: None) -> int:
    """Each signal in turn."""
    return int(request.param)


def test_the_first_signal_raises_and_later_ones_are_ignored(number: int) -> None:
    before = signal.getsignal(number)
    interruptions = Interruptions()
    with handling(interruptions):
        with pytest.raises(KeyboardInterrupt):
            send(number)
        send(number)
    assert interruptions.number == number
    assert signal.getsignal(number) is before


def test_the_first_signal_asks_and_the_second_stops(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    interruptions = Interruptions()
    with handling(interruptions), interruptions.asking("saving") as stop:
        assert not stop()
        send(number)
        assert stop()
        assert "saving" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            send(number)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruptions = Interruptions()
    try:
        with handling(interruptions):
            send(signal.SIGINT)
        assert not interruptions.number
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_time_left_comes_from_the_speed_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace(60.0)
    said = []
    for second in range(0, 130, 10):
        now[0] = second
        said.append(pace.left(0.5 + second / 1000))  # resumed at half, a thousandth a second
    assert said == [None] * 6 + ["7 min left"] + [None] * 5 + ["6 min left"]


def test_durations_have_two_digits() -> None:
    assert [duration(s) for s in (45, 99, 1260, 12_600)] == ["45 s", "99 s", "21 min", "3.5 h"]
