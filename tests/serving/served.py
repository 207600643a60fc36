"""Policies to serve, and services that run in a thread of a test."""

import asyncio
import contextlib
import dataclasses
import pathlib
import sys
import threading
from collections.abc import Iterator

import numpy as np

from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.observation import Batched, Observation, ObservationSpec
from rt2_jax.prompt import Prompt
from rt2_jax.robot_policy import Decoded, RobotPolicy
from rt2_jax.serving import server
from rt2_jax.serving.batcher import Batcher
from rt2_jax.serving.description import describe
from rt2_jax.serving.reading import Reader
from rt2_jax.serving.service import Service
from rt2_jax.tokenizer import Tokenizer
from tests import tiny_models
from tests.conftest import ROOT

SIZE = (24, 32)  # height, width of every camera here
BATCH_SIZES = (1, 4)
HORIZON = 2
TEMPLATE = "Q: what should the robot do to {instruction}? A:"
INSTRUCTIONS = ("put carrot on plate", "pick apple", "open top drawer")


class MarkedPolicy(RobotPolicy):
  """Answers with the first pixels of the newest frame, as bins: a marker.

  Counts its calls' rows; pixel [0, 0, 0] of 255 is an error of the policy.
  While `enter` is cleared calls wait, and `entered` says that one has begun.
  """

  def __init__(self, tokenizer, history: int = 1):
    self.prompt = Prompt(tokenizer, 40, 9 * HORIZON, TEMPLATE)
    self.action_tokenizer = ActionTokenizer(
      RT2, tokenizer.action_route("rare"), horizon=HORIZON
    )
    self.observation = ObservationSpec(history=history)
    self.rows: list[int] = []
    self.seen: list[Batched] = []
    self.enter, self.entered = threading.Event(), threading.Event()
    self.enter.set()

  def _decode(self, seen, drafts):
    self.entered.set()
    assert self.enter.wait(20)
    self.rows.append(len(seen.image))
    self.seen.append(seen)
    if (seen.image[:, -1, 0, 0, 0] == 255).any():
      raise RuntimeError("a marked picture")
    ids = [
      self.action_tokenizer.encode_bins(marker(image[-1]))
      for image in seen.image
    ]
    count = len(ids)
    plans, passes = np.empty((count, 0), np.int32), np.ones(count, np.int32)
    return Decoded(plans, np.stack(ids), passes)


def marker(image: np.ndarray) -> np.ndarray:
  """int[HORIZON, 8]: the bins that `MarkedPolicy` answers an image with."""
  bins = image.reshape(-1)[: 8 * HORIZON].reshape(HORIZON, 8).astype(np.int32)
  bins[:, 0] %= 2
  return bins


def marked(policy: RobotPolicy, image: np.ndarray) -> np.ndarray:
  """float32[HORIZON, 8]: what a service of `MarkedPolicy` answers."""
  return policy.action_tokenizer.to_action(marker(image))


def image(seed: int) -> np.ndarray:
  """uint8[H, W, 3], random; never the one that `MarkedPolicy` fails on."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 255, (*SIZE, 3), np.uint8)


def observation(seed: int, history: int = 1) -> Observation:
  frames = np.stack([image(seed)] * history)
  return Observation({"primary": frames}, INSTRUCTIONS[seed % 3])


def make_service(policy: RobotPolicy, **batching) -> Service:
  """A service of a policy whose cameras all have the same size."""
  spec = policy.observation
  sizes = dict.fromkeys(spec.present, SIZE)
  identity = {"checkpoint": "tiny", "checkpoint_sha256": "0" * 64}
  metadata = describe(policy.action_tokenizer, spec, sizes, 5.0, identity)
  batcher = Batcher(
    policy.decide,
    spec.history,
    batching.pop("sizes", BATCH_SIZES),
    **batching,
  )
  return Service(metadata, Reader(spec, sizes, policy.prompt), batcher)


@dataclasses.dataclass
class Running:
  """A service on a port of the loopback.

  Attributes:
    port: of openpi and HTTP.
    service: the running one.
    loop: its event loop, in another thread.
    stop: begins the end, as SIGTERM does.
  """

  port: int
  service: Service
  loop: asyncio.AbstractEventLoop
  stop: object


@contextlib.contextmanager
def running(
  policy: RobotPolicy, token: str = "", **batching
) -> Iterator[Running]:
  """Runs a service in a thread until the end of the block."""
  ready, state = threading.Event(), {}
  listener = server.bind("127.0.0.1", 0)

  async def main():
    service = make_service(policy, **batching)
    one = server.Server(service, listener, token)
    state.update(service=service, loop=asyncio.get_running_loop(), server=one)
    await one.run_service(ready.set)

  thread = threading.Thread(target=asyncio.run, args=(main(),))
  thread.start()
  assert ready.wait(120)

  def stop():
    state["loop"].call_soon_threadsafe(state["server"].stop)

  try:
    yield Running(
      listener.getsockname()[1], state["service"], state["loop"], stop
    )
  finally:
    if thread.is_alive():
      stop()
    thread.join(30)
    listener.close()
    assert not thread.is_alive()


def save_run(folder: pathlib.Path, tokenizer, **said) -> pathlib.Path:
  """A run whose greedy actions depend on the image; `said` is of its meta."""
  model = tiny_models.config("gemma1", tokenizer.vocab_size)
  params = tiny_models.params(model)
  meta = tiny_models.meta(model, tokenizer) | said
  actions = ActionTokenizer(
    RT2, tokenizer.action_route("rare"), horizon=HORIZON
  )
  meta["action_tokenizers"] = {"kitchen": actions.to_dict()}
  meta["prompt"] |= {"suffix_length": actions.answer_length + 1}
  CheckpointMeta.from_dict(meta)
  checkpoints = Checkpoints(folder / "checkpoints")
  checkpoints.save(7, params, None, meta, tokenizer.model)
  checkpoints.close()
  return folder


if __name__ == "__main__":
  text = Tokenizer.from_file(ROOT / "data/small_tokenizer.model")
  save_run(pathlib.Path(sys.argv[1]), text)
