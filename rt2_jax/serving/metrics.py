"""What Prometheus may ask a service: requests, delays, sizes of batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import prometheus_client

from rt2_jax.errors import UserError
from rt2_jax.serving.batcher import Answer, UnavailableError

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_PASSES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
  """The numbers of one service, in a registry of its own."""

  def __init__(
    self, num_waiting: Callable[[], int], num_sessions: Callable[[], int]
  ):
    """Takes functions that count what is so at the moment."""
    self._registry = prometheus_client.CollectorRegistry()
    self._requests = prometheus_client.Counter(
      "rt2_requests",
      "Requests by protocol and outcome",
      ("protocol", "outcome"),
      registry=self._registry,
    )
    self._seconds = {
      phase: prometheus_client.Histogram(
        f"rt2_{phase}_seconds", help_, buckets=_SECONDS, registry=self._registry
      )
      for phase, help_ in (
        ("queue", "From a checked request to its device call"),
        ("call", "Device call"),
        ("request", "From a received request to its answer"),
      )
    }
    self._rows = prometheus_client.Histogram(
      "rt2_batch_rows",
      "Robots that shared a device call, seen by each of them",
      buckets=_ROWS,
      registry=self._registry,
    )
    self._passes = prometheus_client.Histogram(
      "rt2_passes",
      "Passes of the decoder over an answer",
      buckets=_PASSES,
      registry=self._registry,
    )
    for name, help_, count in (
      ("rt2_waiting", "Requests in the queue", num_waiting),
      ("rt2_sessions", "Robots that are remembered", num_sessions),
    ):
      gauge = prometheus_client.Gauge(name, help_, registry=self._registry)
      gauge.set_function(count)

  @contextlib.contextmanager
  def counted(self, protocol: str) -> Iterator[None]:
    """Counts one request by how it ends: ok, refused, unavailable, failed."""
    outcome = "failed"
    try:
      yield
      outcome = "ok"
    except UserError:
      outcome = "refused"
      raise
    except UnavailableError:
      outcome = "unavailable"
      raise
    finally:
      self._requests.labels(protocol, outcome).inc()

  def observe(self, answer: Answer, seconds: float) -> None:
    """Records the delays of an answer."""
    self._seconds["queue"].observe(answer.queue_s)
    self._seconds["call"].observe(answer.call_s)
    self._seconds["request"].observe(seconds)
    self._rows.observe(answer.rows)
    self._passes.observe(answer.passes)

  def text(self) -> bytes:
    """Writes all numbers in Prometheus' text format."""
    return prometheus_client.generate_latest(self._registry)
