"""What a run says of its steps."""

import dataclasses
import types

import numpy as np
import pytest

from rt2_jax.divergence import DivergenceConfig
from rt2_jax.errors import UserError
from rt2_jax.optimizer import OptimizerConfig
from rt2_jax.progress import Progress
from rt2_jax.speed import Clock

CONFIG = types.SimpleNamespace(
  optimizer=OptimizerConfig(learning_rate=1.0, warmup_steps=4),
  num_steps=10,
  log_every=3,
  batch_size=4,
  source_names=("kitchen", "web"),
  divergence=DivergenceConfig(),
)


@dataclasses.dataclass
class Writer:
  """Keeps what is written, by tag and step."""

  written: dict = dataclasses.field(default_factory=dict)
  flushed: int = 0

  def scalars(self, step, values):
    written = {(tag, step): value for tag, value in values.items()}
    assert not written.keys() & self.written.keys()
    self.written |= written

  def flush(self):
    self.flushed = len(self.written)


def metrics(step: int, web: float = 1.0, **changed) -> dict:
  loss = np.float32([0.1 * step, 0.3 * web])
  return {
    "examples": np.float32([3.0, web]),
    "loss": loss,
    "token_accuracy": np.float32([1.0, 0.5 * web]),
    "gradient_norm": np.float32(1 / step),
    "update_norm": np.float32(0.1),
    "parameter_norm": np.float32(2.0),
  } | changed


def run(
  steps, writer, start=0, window=(), config=CONFIG, **changed
) -> Progress:
  progress = Progress(
    config,
    {},
    writer,
    start,
    dict(window),
    "bad_step_{}.json".format,
    Clock(start, dict(window), 0.0),
  )
  for step in steps:
    progress.add(step, metrics(step, **changed))
  return progress


def test_a_source_without_examples_is_left_out(caplog):
  caplog.set_level("INFO", logger="rt2_jax")
  writer = Writer()
  run(range(1, 4), writer, web=0.0)
  tags = {tag for tag, _ in writer.written}
  assert "train/kitchen/loss" in tags
  assert not [tag for tag in tags if "web" in tag]
  assert "kitchen: loss" in caplog.text and "web: loss" not in caplog.text


def test_a_window_survives_a_restart_to_the_last_bit():
  whole = Writer()
  run(range(1, 11), whole)
  for stop in range(1, 10):
    writer = Writer()
    window = run(range(1, stop + 1), writer).before_save(stop)
    assert writer.flushed == len(writer.written)
    run(range(stop + 1, 11), writer, stop, window)
    speed = {
      key
      for key in whole.written
      if key[0].startswith("speed/") or key[0].endswith("per_s")
    }
    for key in whole.written.keys() - speed:
      assert writer.written[key] == whole.written[key], (stop, key)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("loss", np.float32([np.nan, 0.0])),
    ("loss", np.float32([1.0, np.inf])),
    ("gradient_norm", np.float32(np.nan)),
    ("update_norm", np.float32(np.inf)),
    ("parameter_norm", np.float32(-np.inf)),
  ],
)
def test_what_is_not_finite_stops_a_run(name, value):
  """At the next log, at the next checkpoint; the first such step is named."""
  writer = Writer()
  progress = run(range(1, 3), writer)
  progress.before_save(2)
  with pytest.raises(UserError, match="step 3: .* good checkpoint is step 2"):
    progress.add(3, metrics(3, **{name: value}))
  assert not writer.written
  progress = run(range(1, 4), Writer())
  progress.add(4, metrics(4, **{name: value}))
  progress.add(5, metrics(5))
  with pytest.raises(UserError, match=f"step 4: got .*{name} .*is none"):
    progress.before_save(5)
