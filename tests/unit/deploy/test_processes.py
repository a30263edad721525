"""Child processes end when they should, and not before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from deploy.processes import end, free_port, is_free, send_signal, spawn, tail
from tests.support.processes import alive, gone_within

STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)
SLEEP = ["sleep", "60"]


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time; from deploy.processes import spawn\n"
        "print(spawn(['sleep', '60'], pathlib.Path(sys.argv[1])).pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
    assert gone_within(5, pid)


def test_a_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    children: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: children.append(spawn(SLEEP, tmp_path / "log")))
    thread.start()
    thread.join()
    time.sleep(0.5)
    assert children[0].poll() is None
    end(children[0], grace=5)


def test_a_child_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = spawn([sys.executable, "-c", STUBBORN], log)
    while "up" not in tail(log):
        assert child.poll() is None
        time.sleep(0.02)
    end(child, grace=0.2)
    assert child.returncode == -signal.SIGKILL


def test_a_signal_reaches_what_the_child_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = spawn(["sh", "-c", "sleep 60 & echo $!; wait"], log)
    while not tail(log):
        time.sleep(0.02)
    send_signal(child, signal.SIGTERM)
    child.wait(5)
    assert gone_within(5, int(tail(log)))


def test_a_child_sees_its_own_settings_and_those_of_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spawn(["sh", "-c", 'echo "$GIVEN $HOME"'], log, {"GIVEN": "yes"}).wait(5)
    assert tail(log) == f"yes {os.environ['HOME']}"


def test_a_command_that_does_not_exist_is_named_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert spawn(["no-such-program"], log).wait(5) == 1
    assert tail(log) == "no-such-program: No such file or directory"


def test_a_free_port_can_be_listened_on_and_is_none_that_a_client_may_get() -> None:
    port = free_port()
    assert port < 32_768
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port)
    assert is_free(port)


def test_a_tail_is_the_last_lines_and_empty_where_there_is_no_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_text("one\ntwo\nthree\n")
    assert tail(log, lines=2) == "two\nthree"
