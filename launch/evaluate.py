"""Evaluates a run: `python launch/evaluate.py --workdir=DIR`.

On the evaluation split of each robot source: token accuracy and L1 in physical
units per action dimension, and a picture of predicted against recorded actions.
On that of each web source: how many answers are right, so that forgetting
shows; --web_of asks the questions of another run, such as the one it started
from. Data that moved since training are named by --paths=NAME=FOLDER.
Everything is also written to `DIR/evaluation/`.
How often the run does what it is asked to is launch/rollout.py's question.
"""

import contextlib
import io
import json
import math
from collections.abc import Iterable
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from absl import app, flags
from tqdm import tqdm

from launch import program
from rt2_jax import storage
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.errors import UserError
from rt2_jax.evaluators import action_accuracy, vqa
from rt2_jax.evaluators.held_out import HeldOut, moved
from rt2_jax.input_pipeline import web
from rt2_jax.input_pipeline.loader import LoaderConfig
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.policy import Policy
from rt2_jax.train_config import config_hash, with_defaults

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a training run.")
_STEP = flags.DEFINE_integer(
  "step", None, "Checkpoint; default: the newest.", 0
)
_WEB_OF = flags.DEFINE_string(
  "web_of",
  None,
  "Workdir of the run whose web sources to ask; default: its own.",
)
_PATHS = flags.DEFINE_list(
  "paths", [], "NAME=FOLDER of sources that lie elsewhere than in training."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 50, "Steps in one call.", 1)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "Examples of each source, spread over it; default: all.", 1
)
_MAX_DRAWN = 200  # steps in the picture


@program.main_on_devices
def main():
  workdir = storage.locate(_WORKDIR.value, "--workdir")
  checkpoints = Checkpoints.open_run(workdir)
  step = checkpoints.existing_step(_STEP.value)
  meta, _ = checkpoints.restore_meta(step)
  run = {"step": step, "config_hash": config_hash(meta["config"])}
  config = with_defaults(meta["config"])
  robots, webs = moved((config["sources"], web_sources(config)), _PATHS.value)
  held_out = HeldOut(LoaderConfig(**config["loader"]), _BATCH_SIZE.value)
  folder = storage.output_folder(workdir / "evaluation", "--workdir")
  for name, fields in robots.items():
    policy = Policy.from_checkpoint(workdir, name, step)
    source = SourceConfig(**fields)
    metrics = evaluate_actions(policy, name, source, held_out, folder)
    write(run | metrics, folder / f"{name}.json")
  for name, fields in webs.items():
    source = web.WebConfig(**fields)
    if source.eval_split:
      # Any robot's: its action tokenizer is not used.
      robot = next(iter(robots), None)
      policy = Policy.from_checkpoint(workdir, robot, step)
      metrics = evaluate_answers(policy, name, source, held_out)
      write(run | metrics, folder / f"{name}.json")


def web_sources(config):
  """Reads the web sources of the run that --web_of names, by name."""
  if _WEB_OF.value:
    checkpoints = Checkpoints.open_run(_WEB_OF.value)
    config = with_defaults(checkpoints.restore_meta()[0]["config"])
    checkpoints.close()
  return config["web"]


def evaluate_actions(policy, name, source, held_out, folder):
  """Evaluates a robot source: prints a table, draws a picture."""
  with of_source(name):
    steps = held_out.open_steps(source, policy)
  read = held_out.read_steps(policy, steps, _LIMIT.value)
  result = action_accuracy.evaluate(policy, watched(read, name, len(steps)))
  print(f"\n{name}: {source.dataset}, split {source.eval_split!r}")
  print(result)
  picture = folder / f"{name}.png"
  draw(result, picture)
  print(f"picture of predicted actions: {picture}")
  return result.metrics()


def evaluate_answers(policy, name, source, held_out):
  """Evaluates a web source: prints and returns the answers' accuracy."""
  with of_source(name):
    questions = held_out.open_questions(source, policy)
  read = held_out.read_questions(policy, questions, _LIMIT.value)
  metrics = vqa.evaluate(policy, watched(read, name, len(questions)))
  print(f"\n{name}: split {source.eval_split!r}")
  for metric, value in metrics.items():
    print(f"{metric:<28}{value:>10.3f}")
  return metrics


@contextlib.contextmanager
def of_source(name: str):
  """Adds to an error whose data do not open, and where others are named."""
  try:
    yield
  except UserError as error:
    raise UserError(
      f"source {name}: {error}; --paths={name}=FOLDER names another folder"
    ) from error


def watched(batches: Iterable[Any], name: str, examples: int) -> Iterable[Any]:
  """Shows on a terminal how many batches of a source are done."""
  num = math.ceil(min(examples, _LIMIT.value or examples) / _BATCH_SIZE.value)
  return tqdm(batches, name, num, unit=" batches", disable=None)


def write(metrics: dict[str, Any], path: storage.Path):
  text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
  storage.write(path, text)
  print(f"numbers: {path}")


def draw(result: action_accuracy.ActionAccuracy, path: storage.Path):
  """Draws a panel per dimension: recorded and decoded actions over the steps.

  Of a chunk it takes the first action, which is carried out at that step.
  """
  dimensions = result.action_tokenizer.space.dimensions
  size = 10, 1.6 * len(dimensions)
  figure, axes = plt.subplots(
    len(dimensions), figsize=size, sharex=True, squeeze=False
  )
  axes = axes[:, 0]
  for i, (d, axis) in enumerate(zip(dimensions, axes, strict=True)):
    axis.step(
      range(len(result.recorded[:_MAX_DRAWN])),
      result.recorded[:_MAX_DRAWN, 0, i],
      color="0.6",
      linewidth=3,
      where="mid",
      label="recorded",
    )
    axis.step(
      range(len(result.decoded[:_MAX_DRAWN])),
      result.decoded[:_MAX_DRAWN, 0, i],
      color="tab:red",
      linewidth=1,
      where="mid",
      label="predicted",
    )
    # All that a robot may do: half a bin of error is not drawn as a jump.
    axis.update_datalim([(0, d.low), (0, d.high)])
    axis.autoscale_view()
    axis.set_ylabel(f"{d.name}\n({d.unit})", fontsize="small")
  axes[0].legend(loc="upper right", ncols=2)
  axes[-1].set_xlabel("step")
  figure.tight_layout()
  picture = io.BytesIO()
  figure.savefig(picture, format="png", dpi=100)
  storage.write(path, picture.getvalue())


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
