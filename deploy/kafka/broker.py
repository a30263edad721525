"""A real Apache Kafka on this machine: one JVM in KRaft mode, for the demo and for tests.

    python -m deploy.kafka.broker [--folder FOLDER] [--port PORT]     run one until Ctrl-C

Its jars come through Maven, once, into the folder .kafka of the repository; where there is no Java or Maven but a
container engine that answers, the image apache/kafka runs instead.
"""

from __future__ import annotations

import argparse
import atexit
import base64
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol, Self

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from deploy.processes import end, free_port, is_free, send_signal, spawn, tail
from deploy.progress import run_with_progress

HOME = Path(__file__).parent
REPOSITORY = HOME.parents[1]
CACHE = REPOSITORY / ".kafka"
VERSION = "4.3.1"
IMAGE = f"apache/kafka:{VERSION}"
START_SECONDS = 120.0
STOP_SECONDS = 20.0
MAX_MESSAGE_BYTES = 9 * 1024 * 1024
"""A little above the 8 MiB that the topics admit."""

_DOWNLOADED = re.compile(r"Downloaded from \S+: \S*/(\S+) ")
_ARCHIVE = "classes.jsa"
_QUIET = "-Xlog:disable"  # of Java itself: it warns of every class that an archive cannot hold
# A broker on the machine of its services lives minutes: the quick compiler alone spares them half of its start.
_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true")


class BrokerError(RuntimeError):
    """The broker cannot be started; the message says what to do."""


class Broker(Protocol):
    """What those who only use a broker need to know."""

    @property
    def address(self) -> str:
        """host:port."""
        ...


@dataclass(frozen=True, slots=True)
class ExistingBroker:
    """A broker that somebody else runs."""

    address: str
    """host:port of one or more, separated by commas."""


class Runtime(Protocol):
    """A way of running Kafka's Java classes."""

    @property
    def bind(self) -> str:
        """The address that the broker listens on, as it sees it."""
        ...

    def command(self, folder: Path, port: int, arguments: Sequence[str]) -> list[str]:
        """The command line that runs Java with `arguments`, `folder` within its reach and `port` within ours."""
        ...

    def clean_up(self, folder: Path) -> None:
        """Remove what a process may leave when it is killed."""
        ...


@dataclass(frozen=True, slots=True)
class Quorum:
    """Brokers that are one cluster.

    Attributes:
        cluster: identifier.
        controllers: the port of each one's controller, by its number.
        host: address under which they reach each other, and clients reach them.
    """

    cluster: str
    controllers: Mapping[int, int]
    host: str = "127.0.0.1"

    @classmethod
    def drawn(cls, size: int, host: str = "127.0.0.1") -> Quorum:
        """A new one, on free ports."""
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        return cls(cluster, {number: free_port() for number in range(1, size + 1)}, host)

    @property
    def copies(self) -> int:
        """Of every record: on each broker, up to three."""
        return min(len(self.controllers), 3)


@dataclass(frozen=True, slots=True)
class NativeRuntime:
    """The machine's own Java and the jars that Maven fetched."""

    libraries: Path
    options: tuple[str, ...] = ()
    bind: str = "127.0.0.1"

    def command(self, folder: Path, port: int, arguments: Sequence[str]) -> list[str]:
        """See `Runtime.command`."""
        return ["java", *self.options, "-cp", f"{self.libraries}/*", *arguments]

    def clean_up(self, folder: Path) -> None:
        """See `Runtime.clean_up`: nothing."""


# The engine's client is what dies with us; the container then reads the end of its standard input, and goes too.
_IN_CONTAINER = 'exec 3<&0; (cat <&3 >/dev/null; kill $$) & exec java "$@"'


@dataclass(frozen=True, slots=True)
class ContainerRuntime:
    """The image apache/kafka, under an engine of this machine."""

    engine: str
    bind: str = ""

    def command(self, folder: Path, port: int, arguments: Sequence[str]) -> list[str]:
        """See `Runtime.command`."""
        run = [self.engine, "run", "--rm", "--interactive", "--init", "--name", _container(folder)]
        user = ["--user", f"{os.getuid()}:{os.getgid()}"]  # so that no file in the folder belongs to another
        mounts = ["--volume", f"{folder}:{folder}", "--volume", f"{HOME}:{HOME}:ro"]
        publish = ["--publish", f"127.0.0.1:{port}:{port}"]
        shell = ["--entrypoint", "sh", IMAGE, "-c", _IN_CONTAINER, "java", "-cp", "/opt/kafka/libs/*"]
        return [*run, *user, *mounts, *publish, *shell, *arguments]

    def clean_up(self, folder: Path) -> None:
        """See `Runtime.clean_up`: the engine keeps a container whose client is killed for a moment longer."""
        subprocess.run([self.engine, "rm", "--force", _container(folder)], capture_output=True, check=False)

    def pull(self) -> None:
        """Fetch the image if this is the first time.

        Raises:
            BrokerError: the engine cannot.
        """
        if subprocess.run([self.engine, "image", "inspect", IMAGE], capture_output=True, check=False).returncode:
            _say(f"kafka: pulling {IMAGE} with {self.engine} (once)")
            if subprocess.run([self.engine, "pull", IMAGE], stdout=sys.stderr, check=False).returncode:
                raise BrokerError(f"`{self.engine} pull {IMAGE}` failed; or install Java 17 and Maven instead")


def _container(folder: Path) -> str:
    return f"portcullis-kafka-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _java_is_new_enough() -> bool:
    if not shutil.which("java"):
        return False
    report = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    with contextlib.suppress(IndexError, ValueError):
        return int(report.split('"')[1].split(".")[0].split("-")[0]) >= 17
    return False


def _engine_that_answers() -> str | None:
    for engine in filter(shutil.which, ("docker", "podman")):
        if subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0:
            return engine
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _libraries_folder() -> Path:
    return CACHE / f"libs-{hashlib.sha256((HOME / 'pom.xml').read_bytes()).hexdigest()[:8]}"


def _native_runtime(libraries: Path) -> NativeRuntime:
    """Java with these jars, and their classes loaded from the archive where there is one."""
    archive = libraries / _ARCHIVE
    return NativeRuntime(libraries, (f"-XX:SharedArchiveFile={archive}", _QUIET) if archive.exists() else ())


def _fetch_libraries() -> Path:
    """The folder of Kafka's jars, fetched by Maven if this is the first time.

    Raises:
        BrokerError: Maven failed.
    """
    libraries = _libraries_folder()
    with _locked(CACHE / "lock"):
        if libraries.exists():
            return libraries
        partial = CACHE / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={partial}"]
        command = ["mvn", "-B", "-f", str(HOME / "pom.xml"), *goal]
        try:
            run_with_progress(f"Maven, Apache Kafka {VERSION} (46 jars, 44 MB; once)", command, _downloads)
        except subprocess.CalledProcessError as error:
            raise BrokerError(f"`{' '.join(command)}` failed:\n{error.output.strip()}") from error
        partial.rename(libraries)
        _archive_classes(libraries)
    return libraries


def _downloads(lines: Iterator[str]) -> Iterator[str]:
    """What to show after each line of Maven's that tells of a file."""
    files = 0
    for line in lines:
        if match := _DOWNLOADED.search(line):
            files += 1
            yield f"{files} files, {match[1]}"


def _archive_classes(libraries: Path) -> None:
    """Keep the classes that a broker loads in the form in which Java needs them.

    Loading and checking them is half of what a start costs. Java checks that the archive fits, and does without it
    where it does not.
    """
    _say("kafka: preparing quick starts (once)")
    partial = libraries / f"{_ARCHIVE}.partial"
    recording = NativeRuntime(libraries, (f"-XX:ArchiveClassesAtExit={partial}", _QUIET))
    with LocalBroker(Path(tempfile.mkdtemp(prefix="portcullis-kafka-")), runtime=recording):
        pass
    if partial.exists():
        partial.rename(libraries / _ARCHIVE)


def find_runtime() -> Runtime:
    """The way in which Kafka can run here; fetches its jars, and on Debian as root what they need.

    Raises:
        BrokerError: there is no way; the message says what to install.
    """
    java = _java_is_new_enough()
    if java and _libraries_folder().exists():
        return _native_runtime(_libraries_folder())
    if not (java and shutil.which("mvn")):
        if engine := _engine_that_answers():
            container = ContainerRuntime(engine)
            container.pull()
            return container
        done = subprocess.run([str(REPOSITORY / "deploy" / "bootstrap.sh"), "kafka"], stdout=sys.stderr, check=False)
        if done.returncode:
            raise BrokerError(
                "Kafka needs Java 17 and Maven (`apt-get install openjdk-17-jre-headless maven`), or Docker, "
                "or PORTCULLIS_KAFKA=host:port of a broker of yours"
            )
    return _native_runtime(_fetch_libraries())


class LocalBroker:
    """A Kafka of one's own: `with LocalBroker(folder) as broker: ... broker.address`.

    Stopping it removes what it wrote, unless asked to keep it; killing and restarting it keeps port and data.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        runtime: Runtime | None = None,
        number: int = 1,
        quorum: Quorum | None = None,
    ) -> None:
        """
        Args:
            folder: of its data and its log.
            port: for clients; any free one where it is missing.
            runtime: runs Java; found where it is missing.
            number: of this broker in `quorum`.
            quorum: of the cluster that it is one of; of its own where it is missing.
        """
        self.folder = folder.resolve()
        self.port = port or free_port()
        self.number = number
        self._quorum = quorum or Quorum.drawn(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._runtime = runtime

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"{self._quorum.host}:{self.port}"

    @property
    def log(self) -> Path:
        """What the broker printed, Java's warnings included."""
        return self.folder / "broker.log"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The broker's process id, None while there is none."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def exit_status(self) -> int | None:
        """Of a process that ended without having been asked to; None otherwise."""
        return None if self._process is None else self._process.poll()

    def launch(self) -> None:
        """Begin to start, and return at once; `wait` waits for the end of it.

        Raises:
            BrokerError: Kafka cannot run here.
        """
        if self.running:
            raise BrokerError(f"the broker at {self.address} runs already")
        if not is_free(self.port):
            raise BrokerError(f"port {self.port} is in use; stop what listens there, or choose another")
        self._runtime = self._runtime or find_runtime()
        self.folder.mkdir(parents=True, exist_ok=True)
        properties = self._properties_file
        bind = self._runtime.bind if len(self._quorum.controllers) == 1 else self._quorum.host
        properties.write_text(self._properties(bind))
        if not (self._data / "meta.properties").exists():
            self._format(self._runtime, properties)
        logging = f"-Dlog4j2.configurationFile={HOME / 'log4j2.xml'}"
        arguments = [*_JVM, logging, "kafka.Kafka", str(properties)]
        self._process = spawn(self._runtime.command(self.folder, self.port, arguments), self.log)
        atexit.register(self.stop)

    def wait(self, timeout: float = START_SECONDS) -> None:
        """Wait until the broker answers.

        Raises:
            BrokerError: it ended, or did not answer within `timeout` seconds; the message holds the end of its log.
        """
        deadline = time.monotonic() + timeout
        while not answers(self.address):
            if not self.running or time.monotonic() > deadline:
                what = f"did not answer within {timeout:.0f} s" if self.running else "ended while starting"
                raise BrokerError(f"Kafka {what}; the end of {self.log}:\n{tail(self.log)}")
            time.sleep(0.1)

    def start(self) -> None:
        """Start, and return when the broker answers.

        Raises:
            BrokerError: Kafka cannot run here, or did not answer in time.
        """
        self.launch()
        try:
            self.wait()
        except BaseException:
            self.stop(keep=True)
            raise

    def stop(self, keep: bool = False) -> None:
        """End the process in order, and remove its files unless `keep`."""
        if self._process is not None:
            end(self._process, STOP_SECONDS)
            self._forget_process()
        if not keep:
            self._remove_files()

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would; the data stays."""
        if self._process is not None:
            send_signal(self._process, signal.SIGKILL)
            self._process.wait()
            self._forget_process()

    def restart(self) -> None:
        """Stop and start on the same port and data.

        Raises:
            BrokerError: it did not come back.
        """
        self.stop(keep=True)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _properties_file(self) -> Path:
        return self.folder / "server.properties"

    def _remove_files(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        for file in (self._properties_file, self.log):
            file.unlink(missing_ok=True)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _forget_process(self) -> None:
        if self._runtime is not None:
            self._runtime.clean_up(self.folder)
        self._process = None
        atexit.unregister(self.stop)

    def _format(self, runtime: Runtime, properties: Path) -> None:
        tool = ["-XX:TieredStopAtLevel=1", *_JVM, "kafka.tools.StorageTool"]
        # One word: an identifier in 64 begins with a dash, and would be read as the next option.
        arguments = [*tool, "format", f"--cluster-id={self._quorum.cluster}", "-c", str(properties)]
        if spawn(runtime.command(self.folder, self.port, arguments), self.log).wait():
            raise BrokerError(f"Kafka's storage cannot be made in {self._data}:\n{tail(self.log)}")

    def _properties(self, bind: str) -> str:
        quorum = self._quorum
        voters = ",".join(f"{number}@{quorum.host}:{port}" for number, port in quorum.controllers.items())
        own = f"{quorum.host}:{quorum.controllers[self.number]}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": self.number,
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://{bind}:{self.port},CONTROLLER://{own}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self._data,
            "auto.create.topics.enable": "false",
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "replica.fetch.max.bytes": MAX_MESSAGE_BYTES,
            "socket.request.max.bytes": 4 * MAX_MESSAGE_BYTES,
            "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": quorum.copies,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": quorum.copies,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": quorum.copies,
            "share.coordinator.state.topic.min.isr": 1,
            # An acknowledged record is on two brokers at least, wherever there are three.
            "min.insync.replicas": (quorum.copies + 1) // 2,
            # After a crash the new process must wait until the session of the old one has expired: 9 s by default.
            "broker.session.timeout.ms": 3_000,
            "broker.heartbeat.interval.ms": 500,
            # The defaults are for a server: a quarter of this heap, and threads for many disks and clients.
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "background.threads": 2,
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


class LocalCluster:
    """Several brokers that are one Kafka, every record on up to three of them: `with LocalCluster(folder) as cluster:`.

    Of three, one may be away and everything goes on.
    """

    def __init__(self, folder: Path, size: int = 3, host: str = "127.0.0.1") -> None:
        """
        Args:
            folder: of all that they write.
            size: how many; they cannot run in containers.
            host: an address of this machine, under which everybody reaches them.
        """
        quorum = Quorum.drawn(size, host)
        self.brokers = [
            LocalBroker(folder / f"broker-{number}", number=number, quorum=quorum) for number in quorum.controllers
        ]

    @property
    def address(self) -> str:
        """host:port of each, separated by commas."""
        return ",".join(broker.address for broker in self.brokers)

    @property
    def copies(self) -> int:
        """Of every record (PORTCULLIS_REPLICATION)."""
        return min(len(self.brokers), 3)

    def start(self) -> None:
        """Start all; return when each answers.

        Raises:
            BrokerError: Kafka cannot run here, or did not answer in time.
        """
        try:
            for broker in self.brokers:
                broker.launch()
            for broker in self.brokers:
                broker.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all, and remove what they wrote."""
        # In order, each would wait for a majority that is gone.
        for broker in self.brokers:
            broker.kill()
            broker.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def answers(address: str) -> bool:
    """Whether a broker at host:port serves requests now."""
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
        client = KafkaAdminClient(bootstrap_servers=address, request_timeout_ms=5_000, bootstrap_timeout_ms=5_000)
    except (OSError, KafkaError):
        return False
    try:
        return bool(client.describe_cluster()["brokers"])
    except KafkaError:
        return False
    finally:
        client.close()


@contextlib.contextmanager
def open_broker(folder: Path, port: int | None = None) -> Iterator[Broker]:
    """The broker that PORTCULLIS_KAFKA names or, without it, one of one's own in `folder`.

    Raises:
        BrokerError: there is none, and none can be started.
    """
    if address := os.environ.get("PORTCULLIS_KAFKA"):
        if not any(answers(one) for one in address.split(",")):
            raise BrokerError(f"no Kafka answers at PORTCULLIS_KAFKA={address}")
        yield ExistingBroker(address)
        return
    with LocalBroker(folder, port) as broker:
        yield broker


def stop_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that it cleans up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def main() -> int:
    """Run a broker in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m deploy.kafka.broker", description="Run a local Apache Kafka.")
    parser.add_argument(
        "--folder", type=Path, help="keep its data here (default: a temporary folder, removed at the end)"
    )
    parser.add_argument("--port", type=int, default=9092, help="for clients (%(default)s); 0 takes a free one")
    parser.add_argument("--fetch", action="store_true", help="only fetch what it needs, and end")
    arguments = parser.parse_args()
    stop_on_sigterm()
    try:
        if arguments.fetch:
            find_runtime()
            return 0
        folder = arguments.folder or Path(tempfile.mkdtemp(prefix="portcullis-kafka-"))
        broker = LocalBroker(folder, arguments.port or None)
        try:
            broker.start()
            print(f"Kafka {VERSION} at {broker.address}, data in {folder}; Ctrl-C stops it", flush=True)
            while broker.running:
                threading.Event().wait(0.5)
            raise BrokerError(f"Kafka ended by itself:\n{tail(broker.log)}")
        finally:
            broker.stop(keep=arguments.folder is not None)
    except BrokerError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
