"""Logs: one JSON object a line on standard error, for the services' own lines and for those of their libraries alike.

Never log tensors, keys or anything else that a client chose the size of.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import structlog

from shared.settings import ServiceSettings


def configure_logging(service: str, settings: ServiceSettings, silent: Sequence[str] = ()) -> None:
    """Send everything that is logged in this process to standard error in one shape.

    Args:
        service: named in every line.
        settings: level and shape.
        silent: loggers that only say what is critical, unless the level is DEBUG.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if settings.log_json else structlog.dev.ConsoleRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for chatty in ("kafka", "aiokafka", "faust", "mode"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    if settings.log_level != "DEBUG":
        for name in silent:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[*shared[:3], *shared[3:], structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger of the module `name`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
