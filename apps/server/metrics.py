"""Metrics for Prometheus, at /metrics."""

import threading

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from streamlm.engine import Engine, OpenSessions

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """What one server has done, and what it is doing."""

    def __init__(self, engine: Engine, sessions: OpenSessions, *, rows: int) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"streamlm_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"streamlm_{name}", text, labels, registry=registry, buckets=SECONDS)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"streamlm_{name}", text, registry=registry)

        self.tokens_read = counter("tokens_read", "Tokens of prompts and texts that were read")
        self.tokens_written = counter("tokens_written", "Tokens that were generated")
        self.requests = counter("requests", "HTTP requests that ended", "endpoint", "status")
        self.hang_ups = counter("hang_ups", "Requests whose client hung up")
        self.commits = counter("commits", "Snapshots that were saved")
        self.store_errors = counter("store_errors", "Requests that ended with a store's error")
        self.first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival to the first piece of text"
        )
        self.request_seconds = histogram(
            "request_seconds", "From a request's arrival to its end", "endpoint"
        )
        gauge("rows", "Sessions that can write at once").set(rows)
        batch = engine.batch
        gauge("rows_in_use", "Sessions that are writing in a row").set_function(
            lambda: batch.rows - batch.n_free if batch is not None else 0
        )
        gauge("requests_running", "Requests that read or write").set_function(
            lambda: engine.load[0]
        )
        gauge("requests_waiting", "Requests in the queue").set_function(lambda: engine.load[1])
        gauge("sessions_open", "Sessions in memory").set_function(lambda: len(sessions))
        gauge("session_bytes", "Bytes of the sessions in memory").set_function(
            lambda: sessions.nbytes
        )
        self._counted: dict[str, int] = {}
        self._guard = threading.Lock()

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)

    def count_commits(self, session: str, seq: int) -> None:
        """Count the snapshots of a session up to number `seq` that were not counted yet.

        Those that were there when the session was first seen are not counted.
        """
        with self._guard:
            before = self._counted.get(session, seq)
            self._counted[session] = seq
        self.commits.inc(max(0, seq - before))

    def forget(self, session: str) -> None:
        """Forget a session that was deleted."""
        with self._guard:
            self._counted.pop(session, None)
