"""The inference service as its own process, for tests that talk to it from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Self

from deploy.processes import send_signal, spawn
from shared.keys import KeyFile, issue_key
from tests.support.bundles import untrained_bundle

START_SECONDS = 120.0


class InferenceProcess:
    """`with InferenceProcess(folder, ...) as server:` starts it on a free port and stops it with SIGTERM."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """
        Args:
            folder: for bundle, keys and spool; may hold those of an earlier process.
            settings: of the service, by name.
        """
        self.folder = folder
        self._keys: dict[str, str] = {}
        if not (folder / "bundle").exists():
            untrained_bundle(folder / "bundle")
        if not (folder / "keys.yaml").exists():
            KeyFile(folder / "keys.yaml", {}).save()
        values = {
            "bundle": folder / "bundle",
            "keys": folder / "keys.yaml",
            "spool": folder / "spool",
            "grpc_address": "127.0.0.1:0",
            "kafka": "127.0.0.1:1",
            "shutdown_grace_seconds": 5,
            **settings,
        }
        environment = {f"PORTCULLIS_{name.upper()}": str(value) for name, value in values.items()}
        self._environment = {"OMP_NUM_THREADS": "1", **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / f"inference-{uuid.uuid4().hex}.log"

    def key(self, account: str) -> str:
        """The key of `account`, made at the first call: ask before the server starts, it then knows it at once."""
        if account not in self._keys:
            self._keys[account], record = issue_key(account)
            KeyFile.load(self.folder / "keys.yaml").add(account, record).save()
        return self._keys[account]

    def start(self) -> None:
        """Start, and return when it listens."""
        command = [sys.executable, "-m", "services.inference"]
        self._process = spawn(command, self._log, self._environment)
        try:
            self.port = int(self.wait_for("grpc listens")["port"])
        except AssertionError:
            self.kill()
            raise

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What the process has logged so far."""
        text = self._log.read_text() if self._log.exists() else ""
        return [_parsed(line) for line in text.splitlines()]

    def wait_for(self, event: str, timeout: float = START_SECONDS, after: int = 0) -> dict[str, Any]:
        """The first line of the log that says `event`, of those after the first `after` lines."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for line in self.lines[after:]:
                if line.get("event") == event:
                    return line
            time.sleep(0.05)
        raise AssertionError(f"no {event!r} within {timeout} s in: {self.lines[after:]}")

    @property
    def address(self) -> str:
        """host:port of gRPC."""
        return f"127.0.0.1:{self.port}"

    def stop(self, timeout: float = 30.0) -> int:
        """End by SIGTERM; its exit status."""
        assert self._process is not None
        send_signal(self._process, signal.SIGTERM)
        try:
            return self._process.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        """End by SIGKILL."""
        assert self._process is not None
        send_signal(self._process, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _parsed(text: str) -> dict[str, Any]:
    try:
        line: dict[str, Any] = json.loads(text)
    except ValueError:
        return {"event": "(no JSON)", "text": text}
    return line
