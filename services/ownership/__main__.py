"""`python -m services.ownership`: keep evidence until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import sys
import threading

from services.ownership.app import OwnershipService
from services.ownership.registry import RegistryError
from services.ownership.settings import OwnershipSettings
from shared.log import configure_logging, get_logger
from shared.metrics import HealthServer
from shared.settings import SettingsError, read_settings

log = get_logger(__name__)

WATCH_SECONDS = 0.25
STOP_SECONDS = 10.0


def serve(settings: OwnershipSettings) -> int:
    """Keep evidence until the process is told to stop; 1 where the reader ended by itself.

    Raises:
        RegistryError: the setting names no database that could be used.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    service = OwnershipService(settings)
    health = HealthServer(settings.metrics_host, settings.metrics_port, service.live, service.ready)
    health.start()
    log.info("metrics listen", host=settings.metrics_host, port=health.port)
    try:
        service.start()
        was_ready = False
        while not stop.wait(WATCH_SECONDS):
            if not service.live():
                log.error("the reader has ended, and so does the service; its fault is above")
                return 1
            if service.ready() != was_ready:
                was_ready = not was_ready
                log.info("ready" if was_ready else "not ready")
        return 0
    finally:
        service.stop(STOP_SECONDS)
        health.stop()
        log.info("stopped")


def main() -> int:
    """Run the service; 2 where its settings have a mistake."""
    try:
        settings = read_settings(OwnershipSettings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    # kafka-python reports every failed attempt several times over; the reader says once what is away.
    configure_logging("ownership", settings, silent=("kafka",))
    try:
        return serve(settings)
    except RegistryError as error:
        log.error("cannot start", error=str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
