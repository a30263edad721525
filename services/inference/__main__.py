"""`python -m services.inference`: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import sys

from services.inference.server import InferenceServer
from services.inference.settings import InferenceSettings
from services.inference.spool import SpoolError
from shared.bundle import BundleError
from shared.keys import KeyFileError
from shared.log import configure_logging, get_logger
from shared.metrics import HealthServer
from shared.settings import SettingsError, read_settings

log = get_logger(__name__)


async def serve(settings: InferenceSettings) -> None:
    """Serve until the process is told to stop.

    Raises:
        BundleError, KeyFileError, SpoolError: what the settings name cannot be used.
        RuntimeError: an address cannot be listened on.
    """
    server = InferenceServer(settings)
    health = HealthServer(settings.metrics_host, settings.metrics_port, server.live, server.ready)
    health.start()
    log.info("metrics listen", host=settings.metrics_host, port=health.port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start()
    try:
        await stop.wait()
    finally:
        await server.stop()
        health.stop()


def main() -> int:
    """Run the service; 2 where its settings or files have a mistake."""
    try:
        settings = read_settings(InferenceSettings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    # kafka-python reports every failed attempt several times over; the publisher and the readers say once what is away.
    configure_logging("inference", settings, silent=("kafka",))
    try:
        asyncio.run(serve(settings))
    except (BundleError, KeyFileError, SpoolError) as error:
        log.error("cannot start", error=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
