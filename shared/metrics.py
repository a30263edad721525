"""Every metric, in one place, with its meaning; and the small HTTP server for them and for health.

Never label by account, request or error text: an attacker chooses those.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest

_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_DELAY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# inference
INFERENCE_REQUESTS = Counter("portcullis_inference_requests_total", "Requests by gRPC status", ["code"])
INFERENCE_SECONDS = Histogram("portcullis_inference_seconds", "From request to answer", buckets=_LATENCY)
INFERENCE_QUERIES = Counter("portcullis_inference_queries_total", "Rows answered, by action in force", ["action"])
PERTURBED_ANSWERS = Counter("portcullis_inference_perturbed_total", "Answers spoiled on purpose", ["response"])
MODEL_BATCH_ROWS = Histogram(
    "portcullis_inference_batch_rows", "Rows a forward pass", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
VERDICTS_HELD = Gauge("portcullis_inference_verdicts_held", "Accounts under an action other than allow")
VERDICT_AGE_SECONDS = Gauge("portcullis_inference_verdict_table_age_seconds", "Since the broker last answered a poll")
VERDICTS_STALE = Gauge(
    "portcullis_inference_verdicts_stale", "1 while the table is too old, by what is done then", ["policy"]
)
VERDICT_LATENCY_SECONDS = Histogram(
    "portcullis_verdict_latency_seconds", "From the query that caused a verdict to its enforcement", buckets=_DELAY
)
EVENTS_PUBLISHED = Counter("portcullis_events_published_total", "Query rows that Kafka acknowledged")
EVENTS_SPOOLED = Counter("portcullis_events_spooled_total", "Query rows written to the disk spool")
EVENTS_FAILED = Counter("portcullis_events_failed_total", "Query rows lost; anything but 0 is an incident")
EVENTS_QUEUED = Gauge("portcullis_events_queued", "Query rows waiting in memory")
SPOOL_BYTES = Gauge("portcullis_spool_bytes", "Bytes in the disk spool")

# stream workers
WORKER_RECORDS = Counter("portcullis_worker_records_total", "Records taken, by outcome", ["worker", "outcome"])
WORKER_QUERIES = Counter("portcullis_worker_queries_total", "Rows processed", ["worker"])
WORKER_TAKE_SECONDS = Histogram(
    "portcullis_worker_take_seconds", "One take: score, step, send, store", ["worker"], buckets=_LATENCY
)
WORKER_DELAY_SECONDS = Histogram(
    "portcullis_worker_delay_seconds", "From a query's acceptance to its signal", ["worker"], buckets=_DELAY
)
WORKER_ACCOUNTS = Gauge("portcullis_worker_accounts", "Accounts held in memory", ["worker"])
DEAD_LETTERS = Counter("portcullis_dead_letters_total", "Records or rows sent to a dead topic", ["worker", "reason"])

# decision
VERDICTS_ISSUED = Counter("portcullis_verdicts_total", "Verdicts by action", ["action"])
ALERTS_ISSUED = Counter("portcullis_alerts_total", "Alerts by severity", ["severity"])

# ownership
OWNERSHIP_RECORDS = Counter(
    "portcullis_ownership_records_total", "Records of `perturbed`, by outcome: kept, repeated, rejected", ["outcome"]
)
OWNERSHIP_UNAVAILABLE = Gauge(
    "portcullis_ownership_registry_unavailable", "1 while nothing can be kept, by reason: full, away", ["reason"]
)


class HealthServer:
    """Serves /metrics, /health/live and /health/ready from a thread of its own."""

    def __init__(self, host: str, port: int, live: Callable[[], bool], ready: Callable[[], bool]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
                elif self.path in ("/health/live", "/health/ready"):
                    good = live() if self.path.endswith("live") else ready()
                    self._answer(200 if good else 503, "text/plain", b"ok\n" if good else b"not yet\n")
                else:
                    self._answer(404, "text/plain", b"try /metrics, /health/live or /health/ready\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Probes are not news."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port that is really listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port; also where it never started, as after a failure between the two."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
