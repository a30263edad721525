"""Starts, watches and stops a whole Portcullis on one machine: Kafka, and every service as its own process.

    python -m deploy.local [--folder FOLDER] [--grpc HOST:PORT] [--kafka-port PORT]     (`make up`)

As a library: `with LocalSystem(folder) as system: ... system.grpc_address`. Nothing outlives the process that started
it: not on Ctrl-C, not on a failure, not when it is killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deploy.kafka.broker import BrokerError, LocalBroker, answers, stop_on_sigterm
from deploy.processes import end, free_port, send_signal, spawn, tail
from shared.keys import DEFAULT_KEYS, KeyFile, KeyFileError, issue_key
from shared.settings import ServiceSettings
from shared.topics_admin import TopicsError, create_topics

REPOSITORY = Path(__file__).parents[1]
SERVICES = ("inference", "tmsp", "prada", "similarity", "likelihood", "decision")
"""The defence itself."""
EVERY_SERVICE = (*SERVICES, "ownership")
BROKER = "kafka"
READY_SECONDS = 180.0
STOP_SECONDS = 25.0
REVIVE_SECONDS = 1.0
REFUSED = 2
"""Exit status of a service that will not start: its settings, bundle, policy, keys or topics are at fault."""
_POLL_SECONDS = 0.1
_PREFIX = "PORTCULLIS_"

Progress = Callable[[str, str], None]
"""Told the name of a process and its new state: starting, ready, stopped or ended."""


class LocalSystemError(RuntimeError):
    """A process did not start, or ended by itself; the message holds the end of its log."""


@dataclass(slots=True)
class _Service:
    """One service's process, and whether it is meant to run."""

    name: str
    host: str
    metrics_port: int
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def died(self) -> bool:
        return self.wanted and not self.running


def service_command(name: str) -> list[str]:
    """The command line that runs a service of this repository, or another worker of its kind ("prada-1")."""
    return [sys.executable, "-m", f"services.{name.partition('-')[0]}"]


def _silent(name: str, state: str) -> None:
    """Report nothing."""


def _obituary(what: str, log: Path) -> str:
    return f"{what}; the end of {log}:\n{tail(log)}"


def _answers_200(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class LocalSystem:
    """Kafka (or the one that PORTCULLIS_KAFKA names), its topics, and the services.

    Args:
        folder: for logs (`logs/<name>.log`), the broker's data and the spool; made where it is missing.
        settings: environment variables of the services, PORTCULLIS_<NAME>; they go before this process's own.
        services: names of the services to start.
        progress: told of every change of state, from this or another thread.
        command: the command line of a service, for those who run something else in its place.
        kafka_port: of the broker that it starts; any free one where it is missing.
        spares: further workers ("prada-1") that `restart` starts when they are needed.
        hosts: addresses of this machine at which services are reached, where it is not 127.0.0.1.
        keep: leave the broker's data and the spool in `folder`, for the next start.

    Attributes:
        broker: the broker that it started; None where PORTCULLIS_KAFKA names another.
        ended: exit status of each process that ended without having been asked to, by name.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        services: Sequence[str] = SERVICES,
        *,
        progress: Progress = _silent,
        command: Callable[[str], Sequence[str]] = service_command,
        kafka_port: int | None = None,
        spares: Sequence[str] = (),
        hosts: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self._keep = keep
        self._progress = progress
        self._command = command
        given = {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)} | dict(settings or {})
        self.broker = None if given.get("PORTCULLIS_KAFKA") else LocalBroker(self.folder / "kafka", kafka_port)
        self.kafka = self.broker.address if self.broker else given["PORTCULLIS_KAFKA"]
        self._hosts = hosts or {}
        own_address = f"{self._host('inference')}:{free_port()}"
        self.grpc_address = given.get("PORTCULLIS_GRPC_ADDRESS") or own_address
        self.ended: dict[str, int] = {}
        common = {
            "OMP_NUM_THREADS": "1",  # the services are many and share the machine's cores
            "PYTHONUNBUFFERED": "1",
            "PORTCULLIS_BUNDLE": str(REPOSITORY / "deploy" / "bundle"),
            "PORTCULLIS_SPOOL": str(self._spool),
            **given,
            "PORTCULLIS_KAFKA": self.kafka,
            "PORTCULLIS_GRPC_ADDRESS": self.grpc_address,
        }
        self.settings = ServiceSettings.model_validate(
            {name.removeprefix(_PREFIX).lower(): value for name, value in common.items() if name.startswith(_PREFIX)}
        )
        self._started = tuple(services)
        self._services = {name: self._service(name, common) for name in (*services, *spares)}
        self._watching = threading.Event()

    def start(self) -> None:
        """Start everything; return when every service is ready.

        Raises:
            BrokerError: Kafka does not start, or the one named does not answer.
            TopicsError: topics exist that do not fit.
            LocalSystemError: a service ended or did not get ready.
        """
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            # Services wait for Kafka by themselves: their imports and its start take seconds, side by side.
            self._launch_broker()
            for name in self._started:
                self._launch(self._services[name])
            threading.Thread(target=self._watch, name="watch", daemon=True).start()
            self._await_broker()
            create_topics(self.settings)
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process in order, services first; remove the broker's data and the spool unless they are kept."""
        self._watching.set()
        for service in self._services.values():
            service.wanted = False
            if service.process is not None:
                send_signal(service.process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for service in self._services.values():
            if service.process is not None:
                end(service.process, max(deadline - time.monotonic(), 0.0))
                service.process = None
                self._progress(service.name, "stopped")
        if self.broker is not None:
            self.broker.stop(self._keep)
            self._progress(BROKER, "stopped")
            if not self._keep:
                shutil.rmtree(self._spool, ignore_errors=True)

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """The process of a service.

        Raises:
            KeyError: there is no such service.
            LocalSystemError: it has not been started.
        """
        process = self._services[name].process
        if process is None:
            raise LocalSystemError(f"{name} has not been started")
        return process

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a service with a signal, and wait until it has ended; it stays away until `restart`.

        Raises:
            KeyError: there is no such service.
            LocalSystemError: it does not run, or does not end.
        """
        process = self.process(name)
        self._services[name].wanted = False
        send_signal(process, number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise LocalSystemError(f"{name} did not end within {STOP_SECONDS:.0f} s of {number.name}") from error
        self._progress(name, "stopped")

    def restart(self, name: str, ready_within: float = READY_SECONDS) -> None:
        """Start a service again, ending it first if it runs; return when it is ready.

        Raises:
            KeyError: there is no such service.
            LocalSystemError: it ended, or did not get ready within `ready_within` seconds.
        """
        service = self._services[name]
        if service.running:
            self.kill(name, signal.SIGTERM)
        self.ended.pop(name, None)
        self._launch(service)
        self.wait_ready([name], ready_within)

    def wait_ready(self, names: Sequence[str] | None = None, timeout: float = READY_SECONDS) -> None:
        """Wait until these services (all that are started with the system) say that they are ready.

        Raises:
            LocalSystemError: one ended, or is not ready within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        waiting = dict.fromkeys(names if names is not None else self._started)
        while waiting:
            for name in list(waiting):
                service = self._services[name]
                if service.died:
                    status = self.process(name).returncode
                    raise LocalSystemError(_obituary(f"{name} ended with status {status}", service.log))
                if _answers_200(f"{self._health_url(name)}/ready"):
                    del waiting[name]
                    self._progress(name, "ready")
            if waiting and time.monotonic() > deadline:
                first = next(iter(waiting))
                raise LocalSystemError(_obituary(f"{', '.join(waiting)} not ready in {timeout:.0f} s", self.log(first)))
            time.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """Do nothing while all is well.

        Raises:
            LocalSystemError: a process ended without having been asked to.
        """
        for name, status in self.ended.items():
            raise LocalSystemError(_obituary(f"{name} ended with status {status}", self.log(name)))

    def revive(self) -> None:
        """Start again what ended by itself: workers end on any fault, and go on from Kafka when they are back.

        Raises:
            LocalSystemError: the broker ended, or a service refused to start (status 2), which repeating does not mend.
        """
        for name, status in list(self.ended.items()):
            if name == BROKER or status == REFUSED:
                self.check()
            self._launch(self._services[name])
            del self.ended[name]

    def metrics_url(self, name: str) -> str:
        """Where a service serves its metrics.

        Raises:
            KeyError: there is no such service.
        """
        return f"{self._url(name)}/metrics"

    def log(self, name: str) -> Path:
        """What a service, or `kafka`, printed.

        Raises:
            KeyError: there is no such process.
        """
        return self.broker.log if name == BROKER and self.broker else self._services[name].log

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def _spool(self) -> Path:
        return self.folder / "spool"

    def _service(self, name: str, common: Mapping[str, str]) -> _Service:
        port, host = free_port(), self._host(name)
        own = {
            "PORTCULLIS_METRICS_HOST": host,
            "PORTCULLIS_METRICS_PORT": str(port),
            "PORTCULLIS_INSTANCE": name if "-" in name else f"{name}-0",
        }
        return _Service(name, host, port, {**common, **own}, self.folder / "logs" / f"{name}.log")

    def _host(self, name: str) -> str:
        return self._hosts.get(name, "127.0.0.1")

    def _url(self, name: str) -> str:
        service = self._services[name]
        return f"http://{service.host}:{service.metrics_port}"

    def _health_url(self, name: str) -> str:
        return f"{self._url(name)}/health"

    def _launch_broker(self) -> None:
        if self.broker is not None:
            self._progress(BROKER, "starting")
            self.broker.launch()

    def _await_broker(self) -> None:
        if self.broker is not None:
            self.broker.wait()
        elif not any(answers(address) for address in self.kafka.split(",")):
            raise BrokerError(f"no Kafka answers at PORTCULLIS_KAFKA={self.kafka}")
        self._progress(BROKER, "ready")

    def _launch(self, service: _Service) -> None:
        self._progress(service.name, "starting")
        service.process = spawn(self._command(service.name), service.log, service.environment)
        service.wanted = True

    def _watch(self) -> None:
        """Notice processes that end by themselves."""
        while not self._watching.wait(_POLL_SECONDS):
            for service in self._services.values():
                if service.died and service.name not in self.ended:
                    self._report_end(service.name, self.process(service.name).returncode)
            if self.broker is not None and self.broker.exit_status is not None and BROKER not in self.ended:
                self._report_end(BROKER, self.broker.exit_status)

    def _report_end(self, name: str, status: int) -> None:
        self.ended[name] = status
        self._progress(name, "ended")


def _ensure_keys(path: Path) -> None:
    """Make a file of keys with one account where there is none, and show its key."""
    if not path.exists():
        key, record = issue_key("local")
        KeyFile(path, {"local": (record,)}).save()
        print(f"{path}: account local, shown this once: {key}", flush=True)


def _print_states() -> Progress:
    started = time.monotonic()

    def show(name: str, state: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {name:<12} {state}", flush=True)

    return show


def main() -> int:
    """Run everything in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="Run Portcullis on this machine.")
    parser.add_argument("--folder", type=Path, default=Path("build/local"), help="logs and data (%(default)s)")
    parser.add_argument("--grpc", default="127.0.0.1:8001", help="where clients connect (%(default)s)")
    parser.add_argument("--kafka-port", type=int, default=9092, help="of the broker it starts (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep Kafka's data and the spool for the next start")
    arguments = parser.parse_args()
    stop_on_sigterm()
    keys = Path(os.environ.get("PORTCULLIS_KEYS", DEFAULT_KEYS)).resolve()
    try:
        _ensure_keys(keys)
        system = LocalSystem(
            arguments.folder,
            {"PORTCULLIS_GRPC_ADDRESS": arguments.grpc, "PORTCULLIS_KEYS": str(keys)},
            EVERY_SERVICE,
            progress=_print_states(),
            kafka_port=arguments.kafka_port,
            keep=arguments.keep,
        )
        with system:
            print(f"\nKafka at {system.kafka}, gRPC at {system.grpc_address}; Ctrl-C stops all", flush=True)
            for name in EVERY_SERVICE:
                print(f"  {system.metrics_url(name)}   {system.log(name)}", flush=True)
            while True:
                time.sleep(REVIVE_SECONDS)
                system.revive()
    except (BrokerError, TopicsError, LocalSystemError, KeyFileError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
