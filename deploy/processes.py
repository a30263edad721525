"""Child processes that never outlive the process that started them, however it ends."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_GUARD = Path(__file__).with_name("guard.py")

# Linux kills a guarded child when the *thread* that started it ends, so one thread that lives as long as this
# process starts them all.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def spawn(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, its output appended to `log`; it is killed when this process dies.

    Args:
        environment: what is added to this process's own environment.

    Raises:
        OSError: the log cannot be opened.
    """
    guarded = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *command]
    with log.open("ab") as output:
        return _SPAWNER.submit(
            subprocess.Popen,
            guarded,
            stdin=subprocess.PIPE,  # never written: its end tells even those out of a signal's reach that we are gone
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        ).result()


def send_signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process started by `spawn` and to all that it started; nothing if it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ask a process to end, insist after `grace` seconds, and reap it."""
    send_signal(process, signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        send_signal(process, signal.SIGKILL)
        process.wait()
    finally:
        if process.stdin is not None:
            process.stdin.close()


def is_free(port: int) -> bool:
    """Whether nobody on this machine listens on a TCP port."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are closing do not count
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A TCP port of this machine that nobody listens on.

    Below Linux's range for outgoing connections: a client that keeps trying a port of that range while its server is
    away may otherwise connect to itself, and hold the port against the server's return.

    Raises:
        RuntimeError: no port is free.
    """
    for port in random.sample(range(20_000, 32_000), 200):
        if is_free(port):
            return port
    raise RuntimeError("no TCP port between 20000 and 32000 is free")


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for an error message; empty where there is none."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
