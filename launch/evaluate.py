"""Evaluates a run: `python launch/evaluate.py --workdir=DIR`.

Prints, per action dimension, token accuracy and L1 in physical units on the
evaluation split of each robot source, and draws predicted against recorded
actions to `DIR/evaluation/`.
"""

import json
import pathlib

import absl.logging
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from absl import app, flags

from rt2_jax.checkpoint import Checkpoints
from rt2_jax.evaluators import action_accuracy
from rt2_jax.input_pipeline import datasets, loader
from rt2_jax.policy import Policy

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a training run.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the newest.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 50, "Steps in one call.")
_MAX_DRAWN = 200  # steps in the picture


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"got {argv[1:]}, expected flags only")
  absl.logging.set_verbosity(absl.logging.WARNING)
  workdir = pathlib.Path(_WORKDIR.value)
  checkpoints = Checkpoints.open_run(workdir)
  meta, _ = checkpoints.restore_meta(_STEP.value)
  for name, fields in meta["config"]["sources"].items():
    source = datasets.SourceConfig(**fields)
    policy = Policy.from_checkpoint(workdir, name, _STEP.value)
    steps = datasets.open_source(
      source,
      source.eval_split,
      policy.model.num_frames,
      meta["config"]["loader"]["index_folder"] or None,
    )
    result = action_accuracy.evaluate(
      policy, loader.read_steps(steps, _BATCH_SIZE.value)
    )
    print(f"\n{name}: {source.dataset}, split {source.eval_split!r}")
    print(result)
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    numbers = folder / f"{name}.json"
    numbers.write_text(json.dumps(result.metrics(), indent=2))
    picture = folder / f"{name}.png"
    draw(result, picture)
    print(f"numbers: {numbers}\npicture of predicted actions: {picture}")


def draw(result: action_accuracy.ActionAccuracy, path: pathlib.Path):
  """One panel per dimension: recorded and decoded actions over the steps."""
  dimensions = result.tokenizer.space.dimensions
  figure, axes = plt.subplots(
    len(dimensions), 1, figsize=(10, 1.6 * len(dimensions)), sharex=True
  )
  for i, (d, axis) in enumerate(zip(dimensions, axes, strict=True)):
    axis.step(
      range(len(result.recorded[:_MAX_DRAWN])),
      result.recorded[:_MAX_DRAWN, i],
      color="0.6",
      linewidth=3,
      where="mid",
      label="recorded",
    )
    axis.step(
      range(len(result.decoded[:_MAX_DRAWN])),
      result.decoded[:_MAX_DRAWN, i],
      color="tab:red",
      linewidth=1,
      where="mid",
      label="predicted",
    )
    axis.set_ylabel(f"{d.name}\n({d.unit})")
  axes[0].legend(loc="upper right", ncols=2)
  axes[-1].set_xlabel("step")
  figure.tight_layout()
  figure.savefig(path, dpi=100)


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
