"""A real service with nothing to do: it waits for its topics, says that it is ready, and stays until it is told to go.

tiny_service.py [--fail-at-start | --never-ready]
"""

from __future__ import annotations

import os
import sys
import threading

from shared.metrics import HealthServer
from shared.settings import ServiceSettings
from shared.topics_admin import wait_for_topics


def main() -> None:
    if "--fail-at-start" in sys.argv:
        sys.exit("field rules.0.name: two rules have this name")
    settings = ServiceSettings()
    ready = threading.Event()
    health = HealthServer(settings.metrics_host, settings.metrics_port, live=lambda: True, ready=ready.is_set)
    health.start()
    wait_for_topics(settings, timeout=120)
    print(f"instance {os.environ['PORTCULLIS_INSTANCE']}", flush=True)
    ready.set()
    threading.Event().wait()


if __name__ == "__main__":
    main()
