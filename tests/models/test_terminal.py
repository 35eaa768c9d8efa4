"""Every command prints where the terminal knows ASCII alone, in English that can be read."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.command import exit_code
from models.terminal import readable

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize(
    ("text", "encoding", "written"),
    [
        ("1.2 × [1, 3] – ÷ 2 … → ΔN ≥ 0", "ascii", "1.2 x [1, 3] - / 2 ... -> dN >= 0"),
        ("α β, N²", "ascii", "alpha beta, N2"),
        ("größe", "ascii", "gro?e"),
        ("größe × 2 → 3", "latin-1", "größe × 2 -> 3"),
        ("a\udcc3b", "utf-8", "a?b"),
        ("größe ×", "utf-8", "größe ×"),
    ],
)
def test_letters_outside_an_encoding_are_spelled(monkeypatch, text, encoding, written):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    readable()
    print(text, end="", flush=True)
    assert raw.getvalue().decode(encoding) == written


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (0, ["sweeps/run.py", "--help"]),
        (0, ["sweeps/run.py", "-m", "mix=gdn,transformer", "size=50k", "plan=true"]),
        (2, ["sweeps/run.py", "sweep=größe"]),
        (2, ["sweeps/status.py", "größe"]),
        (0, ["-m", "models", "mix=gdn,transformer"]),
        (0, ["-m", "ablations.data", "--help"]),
        (2, ["-m", "ablations.data", "check", "path=größe"]),
        (2, ["-m", "ablations.evaluate", "größe"]),
        (2, ["-m", "analysis", "report", "sweep=größe"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_command_prints_on_an_ascii_terminal(code, command):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, **ASCII}, capture_output=True,
        check=False, timeout=120,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert (done.returncode, bool(said.strip())) == (code, True)
    assert said.isascii()
    assert b"Traceback" not in said
    assert b"UnicodeEncodeError" not in said


def test_a_file_named_in_an_error_moves_no_cursor(capsys):
    def work():
        raise FileNotFoundError(2, "No such file", "a\x1b[2J.bin")

    assert exit_code(work) == 2
    assert capsys.readouterr().err == "error: No such file (a\\x1b[2J.bin)\n"


def test_every_command_makes_its_output_readable():
    commands = [
        path for room in ("models", "ablations", "sweeps", "analysis")
        for path in (ROOT / room).rglob("*.py") if "def main(arg" in path.read_text() or
        path in (ROOT / "sweeps" / "run.py", ROOT / "sweeps" / "worker.py")
    ]  # fmt: skip
    assert len(commands) >= 9
    # `models.command.ended` and `ablations.command.exit_code` call it for those that they end.
    calls = ("    readable()\n", "return ended(", "return exit_code(")
    unreadable = [
        path for path in commands
        if not any(call in path.read_text() for call in calls)
    ]  # fmt: skip
    assert unreadable == []
