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
    """A process that imports and forks; it ends when it is closed, or when this process does.

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

    def start(self, module: str, arguments: list[str], log: Path, environment: Mapping[str, str]) -> "Fork":
        """Fork a process that runs `worker.main(arguments)` in a session of its own, where `module` is imported."""
        request = {"module": module, "arguments": arguments, "log": os.fspath(log), "environment": dict(environment)}
        return Fork(self, self.ask(request))

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send one request and wait for its answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the fork server has no pipes")
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the fork server died (exit status {self._process.wait()})")
        return json.loads(answer)

    def close(self) -> None:
        """End the process; those that it forked go on."""
        self._process.kill()
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

    def terminate(self) -> None:
        """Ask the process to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more; in a process that was forked, return what it is asked to do."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            with contextlib.suppress(Exception):  # the experiment fails alike, and records it
                importlib.import_module(request["module"])
            answer = os.fork()
            if answer == 0:
                answers.close()
                return request
        print(json.dumps(answer), file=answers, flush=True)
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
