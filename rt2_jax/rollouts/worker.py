"""A worker process: makes environments and steps them as it is told.

Runs under the benchmark's interpreter. Needs numpy, Python 3.9 and the
benchmark's own packages alone.

A request is {"trial"} to begin one, {"action"} to step, or {"expert": trial} to
step as the scripted expert would. The reply is {"observation", "outcome"}, or
{"error"} where the environment raised.
"""

from __future__ import annotations

import pickle
import signal
from multiprocessing import connection
from typing import Any

from rt2_jax.errors import UserError
from rt2_jax.observation import Observation
from rt2_jax.rollouts import wire
from rt2_jax.rollouts.trial import Environment, Outcome, Trial


def serve(handle: int) -> None:
  """Makes the environments, then answers requests until the parent closes.

  Args:
    handle: file descriptor of the connection that the process inherited.
  """
  # Ctrl-C ends the parent, which closes the connection; one message is enough.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with connection.Connection(handle) as parent:
    count = wire.loads(parent.recv_bytes())["count"]
    try:
      benchmark = pickle.loads(parent.recv_bytes())
      environments = [benchmark.make() for _ in range(count)]
    except UserError as error:
      parent.send_bytes(wire.dumps({"error": str(error)}))
      return
    parent.send_bytes(wire.dumps({"control_hz": environments[0].control_hz}))
    while True:
      try:
        requests = wire.loads(parent.recv_bytes())
      except EOFError:
        return
      for slot, request in requests.items():
        parent.send_bytes(_answer(environments[int(slot)], request))


def _answer(env: Environment, request: dict[str, Any]) -> bytes:
  try:
    if "trial" in request:
      return _encode(env.reset(Trial(**request["trial"])), None)
    if "expert" in request:
      action = env.expert(Trial(**request["expert"]))
      if action is None:
        raise UserError("got an environment without an expert, expected one")
    else:
      action = request["action"]
    return _encode(*env.step(action))
  except Exception as error:
    # Whatever it was, the other trials go on, and the report names it.
    return wire.dumps({"error": f"{type(error).__name__}: {error}"})


def _encode(observation: Observation, outcome: Outcome | None) -> bytes:
  seen = {**observation._asdict(), "images": dict(observation.images)}
  end = None if outcome is None else outcome._asdict()
  return wire.dumps({"observation": seen, "outcome": end})
