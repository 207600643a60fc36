"""Action accuracy: agreement with recorded actions, per dimension.

Two readings: teacher-forced (each token is predicted from the recorded ones
before it, over the whole vocabulary, as in training) and decoded (the policy
acts freely, as on a robot).

Shapes: N recorded steps, b of them in one call, H actions of a chunk, D
dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.actions import NUM_BINS
from rt2_jax.errors import UserError
from rt2_jax.observation import Batched
from rt2_jax.policy import Policy

NEAR = 2  # bins: "close to the recorded action"


@dataclasses.dataclass(frozen=True)
class ActionAccuracy:
  """Agreement of predicted with recorded actions.

  Attributes:
    action_tokenizer: what bins and dimensions mean.
    recorded: float32[N, H, D] physical units.
    decoded: float32[N, H, D] physical units.
    forced: bool[N, H, D], whether the teacher-forced tokens of a number are
      right, with the space or eos that ends a written one; None where an action
      follows a plan, which the recorded steps do not hold.
  """

  action_tokenizer: ActionTokenizer
  recorded: np.ndarray
  decoded: np.ndarray
  forced: np.ndarray | None

  @property
  def bin_distance(self) -> np.ndarray:
    """Bins between decoded and recorded action, int32[N, H, D].

    Classes of a discrete dimension have no order: another one is far.
    """
    to_bins = self.action_tokenizer.to_bins
    distance = np.abs(to_bins(self.decoded) - to_bins(self.recorded))
    is_class = [
      d.kind == "discrete" for d in self.action_tokenizer.space.dimensions
    ]
    return np.where(is_class & (distance > 0), NUM_BINS, distance)

  @property
  def near(self) -> float:
    """Fraction of the actions that are near in every dimension."""
    return float((self.bin_distance <= NEAR).all(-1).mean())

  def metrics(self) -> dict[str, float]:
    """Lists all results as `name/dimension`; L1 in physical units.

    Numbers are means over the actions of a chunk; of a chunk of several,
    `within_2_bins/action_{h}` says how near its action h comes.
    """
    distance = self.bin_distance
    near = distance <= NEAR
    columns = {
      "decoded_accuracy": (distance == 0).mean((0, 1)),
      f"within_{NEAR}_bins": near.mean((0, 1)),
      "l1": np.abs(self.decoded - self.recorded).mean((0, 1)),
    }
    metrics = {f"within_{NEAR}_bins/all": self.near}
    if self.action_tokenizer.horizon > 1:
      for h, mean in enumerate(near.all(-1).mean(0)):
        metrics[f"within_{NEAR}_bins/action_{h}"] = float(mean)
    if self.forced is not None:
      columns["forced_accuracy"] = self.forced.mean((0, 1))
      metrics["forced_accuracy/mean"] = float(self.forced.mean())
    for name, values in columns.items():
      for dimension, value in zip(
        self.action_tokenizer.space.names, values, strict=True
      ):
        metrics[f"{name}/{dimension}"] = float(value)
    return metrics

  def __str__(self) -> str:
    metrics = self.metrics()
    columns = {
      "forced_accuracy": f"{'token accuracy':>16}",
      "decoded_accuracy": f"{'decoded exactly':>17}",
      f"within_{NEAR}_bins": f"{f'within {NEAR} bins':>15}",
    }
    mean = "no token accuracy: the recorded steps hold no plans"
    if self.forced is None:
      del columns["forced_accuracy"]
    else:
      share = metrics["forced_accuracy/mean"]
      mean = f"mean teacher-forced token accuracy {share:.3f}"
    width = max(12, *map(len, self.action_tokenizer.space.names))
    head = f"{'dimension':<{width}}"
    rows = [f"{head}{''.join(columns.values())}{'L1':>13}  unit"]
    for d in self.action_tokenizer.space.dimensions:
      shares = "".join(
        f"{metrics[f'{name}/{d.name}']:>{len(title)}.3f}"
        for name, title in columns.items()
      )
      l1 = metrics[f"l1/{d.name}"]
      rows.append(f"{d.name:<{width}}{shares}{l1:>13.5f}  {d.unit}")
    rows.append(
      f"{mean}; decoded within {NEAR} "
      f"bins in every dimension: {self.near:.3f} of {len(self.recorded)} steps"
    )
    return "\n".join(rows)


def evaluate(
  policy: Policy, steps: Iterable[tuple[Batched, np.ndarray]]
) -> ActionAccuracy:
  """Runs a policy over recorded steps.

  Args:
    policy: what to evaluate.
    steps: b observations and the recorded chunks float32[b, H, D], from
      `in_order.read_steps`.

  Raises:
    UserError: there are none.
  """
  recorded, decoded, forced = [], [], []
  forces = not policy.prompt.plan_length
  for seen, chunks in steps:
    recorded.append(chunks)
    decoded.append(policy.action_tokenizer.decode(policy.token_ids(seen)))
    if forces:
      forced.append(_forced(policy, seen, chunks))
  if not recorded:
    raise UserError(
      "got no recorded steps, expected at least one; choose another eval_split "
      "or a larger limit"
    )
  return ActionAccuracy(
    policy.action_tokenizer,
    np.concatenate(recorded),
    np.concatenate(decoded),
    np.concatenate(forced) if forced else None,
  )


def metric_names(policy: Policy) -> list[str]:
  """Lists the metrics that `evaluate` will find, without acting."""
  tokenizer = policy.action_tokenizer
  same = np.zeros((1, tokenizer.horizon, len(tokenizer.space)), np.float32)
  forced = None if policy.prompt.plan_length else same
  return list(ActionAccuracy(tokenizer, same, same, forced).metrics())


def _forced(policy: Policy, seen: Batched, chunks: np.ndarray) -> np.ndarray:
  """Compares tokens by teacher forcing, bool[b, H, D]."""
  action_tokenizer = policy.action_tokenizer
  ids = [action_tokenizer.encode(chunk) for chunk in chunks]
  suffix = np.stack([policy.prompt.suffix(row)[0] for row in ids])
  images = seen.image, seen.image_size
  right = policy.forced_ids(*images, policy.prompts(seen), suffix) == suffix
  starts = [
    np.cumsum([0, *action_tokenizer.token_counts(chunk)]) for chunk in chunks
  ]
  numbers = [
    np.logical_and.reduceat(row[: at[-1]], at[:-1])
    for row, at in zip(right, starts, strict=True)
  ]
  return np.reshape(numbers, chunks.shape)
