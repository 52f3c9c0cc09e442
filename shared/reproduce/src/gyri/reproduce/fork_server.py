"""Fork server: a process that imports every paper once and forks for each of its experiments, on Linux.

To import JAX and a paper takes two to five seconds of a core, as long as some experiments run. The process that forks
computes nothing itself: no backend of JAX, no pool of threads exists when it forks.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import worker

AVAILABLE = sys.platform == "linux"  # frameworks of macOS do not survive a fork, and Windows has none


class ForkServer:
    """A process that imports and forks; all end when it is closed, or when this process does.

    Parameters
    ----------
    environment : mapping from str to str
        All variables of the processes.

    Raises
    ------
    RuntimeError
        By its methods, if the process died.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
            text=True,
        )
        self._number = 0

    def start(self, module: str, arguments: list[str], log: Path, environment: Mapping[str, str]) -> "Fork":
        """Fork a process that runs `worker.main(arguments)` where `module` is imported.

        It leads a session, so that Ctrl-C reaches the runner alone.
        """
        request = {"module": module, "arguments": arguments, "log": os.fspath(log), "environment": dict(environment)}
        return Fork(self, self.ask(request))

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send one request and wait for its answer."""
        self._number += 1
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([self._number, request]), file=self._process.stdin, flush=True)
        for line in iter(self._process.stdout.readline, "") if self._process.stdout else ():
            number, answer = json.loads(line)
            if number == self._number:  # or Ctrl-C came before the answer to an earlier one
                return answer
        raise RuntimeError(f"the fork server died (exit status {self._process.wait()})")

    def close(self) -> None:
        """End the process and those that it forked."""
        self._process.communicate()


class Fork:
    """A forked process, with the methods of `subprocess.Popen` that the runner calls."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while the process runs."""
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; `subprocess.TimeoutExpired` after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.01)
        return status

    def kill(self) -> None:
        """End the process."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more; in a process that was forked, return what it is asked to do."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    statuses: dict[int, int | None] = {}
    for line in sys.stdin:
        number, request = json.loads(line)
        if "poll" in request:
            pid = request["poll"]
            if statuses[pid] is None and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[pid] = os.waitstatus_to_exitcode(ended[1])
            answer = statuses[pid]
        else:
            with contextlib.suppress(Exception):  # the experiment fails alike, and records it
                importlib.import_module(request["module"])
            answer = os.fork()
            if answer == 0:
                answers.close()
                return request
            statuses[answer] = None
        print(json.dumps([number, answer]), file=answers, flush=True)
    for pid in (pid for pid, status in statuses.items() if status is None):
        for end in (os.killpg, os.kill):  # it may not lead its session yet
            with contextlib.suppress(ProcessLookupError):
                end(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None


def run(request: Mapping[str, Any]) -> None:
    """In a forked process: leave the server's session and files, then work."""
    os.setsid()
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, request["log"], os.O_WRONLY | os.O_APPEND)):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)
    os.environ.update(request["environment"])
    worker.main(request["arguments"])


if __name__ == "__main__":
    asked = serve()
    if asked is not None:
        run(asked)
