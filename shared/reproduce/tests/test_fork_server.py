import json
import os
import signal
import subprocess
import time

import pytest

from gyri.reproduce import fork_server
from gyri.reproduce.fork_server import ForkServer

pytestmark = pytest.mark.skipif(not fork_server.AVAILABLE, reason="processes are forked on Linux only")

PROGRAM = """
import os
import sys

imported = os.getpid()


def main(arguments):
    print(imported != os.getpid(), os.getsid(0) == os.getpid(), os.environ["COLOUR"], os.environ["FRUIT"], arguments)
    sys.stdout.flush()
    if arguments == ["die"]:
        os.kill(os.getpid(), 9)
    if arguments == ["wait"]:
        import time
        print(os.getpid(), flush=True)
        time.sleep(60)
    sys.exit(len(arguments))
"""


@pytest.fixture
def server(tmp_path):
    """A server whose worker is the program above."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, program, gyri.reproduce\nsys.modules['gyri.reproduce.worker'] = gyri.reproduce.worker = program\n"
    )
    path = os.pathsep.join([os.fspath(tmp_path), os.environ.get("PYTHONPATH", "")])
    server = ForkServer(os.environ | {"PYTHONPATH": path, "COLOUR": "red", "FRUIT": "plum"})
    yield server
    server.close()


def start(server, tmp_path, *arguments, module="math", **environment):
    log = tmp_path / "log"
    log.touch()
    return server.start(module, list(arguments), log, environment), log


def test_forks_share_imports_and_have_their_own_session_log_and_variables(server, tmp_path):
    process, log = start(server, tmp_path, "a", "b", module="no_such_module", FRUIT="fig")
    assert process.wait(20.0) == 2 == process.poll()
    assert log.read_text() == "True True red fig ['a', 'b']\n"
    second, _ = start(server, tmp_path)
    assert second.wait(20.0) == 0
    assert log.read_text().splitlines()[1:] == ["True True red plum []"]


def test_death_by_a_signal_is_told(server, tmp_path):
    assert start(server, tmp_path, "die")[0].wait(20.0) == -signal.SIGKILL


def test_process_is_ended(server, tmp_path):
    process, _ = start(server, tmp_path, "wait")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.kill()
    assert process.wait(20.0) == -signal.SIGKILL


def test_death_of_the_server_is_an_error(server, tmp_path):
    process, _ = start(server, tmp_path, "wait")
    os.kill(server._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="died"):
        process.poll()
    os.kill(process.pid, signal.SIGKILL)


def test_what_an_interrupted_request_started_ends_with_the_server(server, tmp_path):
    log = tmp_path / "lost"
    log.touch()
    lost = {"module": "math", "arguments": ["wait"], "log": str(log), "environment": {}}
    print(json.dumps([-1, lost]), file=server._process.stdin, flush=True)
    assert start(server, tmp_path, "a")[0].wait(20.0) == 1
    deadline = time.monotonic() + 20
    while len(log.read_text().splitlines()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    pid = int(log.read_text().splitlines()[1])
    os.kill(pid, 0)
    server.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
