"""A process that has imported all that a run needs, and forks a worker for each run it is told of.

Importing torch, its checkpoints and its optimizers takes a core 5 s, or 10 where Python keeps no
bytecode, which a sweep of small runs would otherwise spend on each of them. Nothing is computed
before a fork, so no pool of threads has been used that a fork would lack: it is a fresh worker in
all but its imports, and trains to the same bits.

`python -m sweeps.starter` says `{}` once it is ready, then answers each line of its standard input,
{"run": RUN_DIR}, with {"pid": number}; of each fork that ends it says {"pid": number, "code": its
exit code, or minus the signal that ended it}. When its standard input ends so does it: what it
forked trains on, as other workers do without their driver.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PRELOADED = ("ablations.train", "torch._dynamo")
"""What a run imports; the optimizers import the second at their first step."""
LISTEN_SECONDS = 0.1
POLL_SECONDS = 0.005


def main() -> int:
    """Serve the driver at the other end of standard input and output, or be a fork's worker."""
    # A Ctrl-C is for the driver.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector would write to, and so copy, every page that forks share
    running: set[int] = set()
    _tell({})
    while True:
        heard, _, _ = select.select([0], [], [], LISTEN_SECONDS)
        if heard:
            asked = _line()
            if not asked:
                return 0
            pid = os.fork()
            if not pid:
                return _work(Path(json.loads(asked)["run"]))
            running.add(pid)
            _tell({"pid": pid})
        for pid in sorted(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                _tell({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _work(run: Path) -> int:
    """What a worker's own process would do, its log in place of the pipes of this one."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(run / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    null = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((null, 0), (log, 1), (log, 2)):
        os.dup2(here, there)
    os.close(log)
    os.close(null)
    from sweeps import worker  # what goes wrong in it is in the log

    return worker.main(str(run))


def _line() -> bytes:
    """One line of standard input; nothing at its end. Unbuffered: the rest is for `select`."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


def _tell(answer: Mapping[str, int]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


class Fork:
    """A worker that a starter forked, as the driver sees it: what it needs of a Popen."""

    def __init__(self, pid: int, starter: Starter) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._starter = starter

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self.returncode is None and not self._starter.alive and self.returncode is None:
            try:  # its code went with the starter
                os.kill(self.pid, 0)
            except ProcessLookupError:
                self.returncode = 1
        return self.returncode

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self.poll()) is None:
            time.sleep(LISTEN_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """As os.kill, while it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Starter:
    """The driver's end of a process that forks its runs."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._forks: dict[int, Fork] = {}
        self._ready = False
        self._heard = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sweeps.starter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=dict(environment),
            start_new_session=True,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    @property
    def alive(self) -> bool:
        """Whether it can be asked for more; one that cannot import what runs need ends at once."""
        self._listen()
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether its imports are done."""
        self._listen()
        return self._ready

    def start(self, run: Path) -> Fork | None:
        """Fork a worker of a run; None where the starter has ended meanwhile."""
        assert self._process.stdin is not None
        self._new: Fork | None = None
        try:
            self._process.stdin.write(json.dumps({"run": str(run)}).encode() + b"\n")
        except BrokenPipeError:
            return None
        while self._new is None and self.alive:
            time.sleep(POLL_SECONDS)
        return self._new

    def close(self) -> None:
        """Let it end; its forks go on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _listen(self) -> None:
        """Take in what was said since."""
        assert self._process.stdout is not None
        while said := self._process.stdout.read():
            self._heard += said
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            answer: dict[str, Any] = json.loads(line)
            if not answer:
                self._ready = True
            elif "code" in answer:
                self._forks[answer["pid"]].returncode = answer["code"]
            else:
                self._new = self._forks[answer["pid"]] = Fork(answer["pid"], self)


if __name__ == "__main__":
    sys.exit(main())
