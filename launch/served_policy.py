"""The policy that launch/serve.py serves: opened, and named by its hashes."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from launch import program
from rt2_jax import local_copies, storage
from rt2_jax.checkpoint_meta import ROBOT_FILE
from rt2_jax.differences import json_hash
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.datasets import DATASETS
from rt2_jax.prompt import Prompt
from rt2_jax.robot_policy import RobotPolicy


@dataclasses.dataclass(frozen=True)
class Opened:
  """A policy with what the service says of it.

  Attributes:
    policy: which can act.
    control_hz: steps per second of its robot's data; None where unknown.
    identity: of the checkpoint: its name, step, hashes, and how it is asked.
  """

  policy: RobotPolicy
  control_hz: float | None
  identity: Mapping[str, Any]


def open_policy(
  folder: str, source: str | None, step: int | None, int8: bool = False
) -> Opened:
  """Opens a run's checkpoint in JAX, or an exported folder in PyTorch.

  Args:
    folder: of the checkpoint.
    source: robot source whose actions to use, where there are several.
    step: of a run; None: the newest.
    int8: whether a run's matrices are rounded to 8 bits.

  Raises:
    UserError: no policy there, one that cannot act, or no such source.
  """
  exported = storage.locate(folder, "--checkpoint")
  if (exported / ROBOT_FILE).is_file():
    if step is not None or int8:
      raise UserError(
        f"got --step={step} --int8={int8} for an exported folder, which has "
        "one step and acts in PyTorch; remove them, or serve the run itself"
      )
    opened = _exported(exported, source)
  else:
    opened = _run(folder, source, step, int8)
  _ = opened.policy.action_space  # a model that only answers is refused
  return opened


def _run(
  folder: str, source: str | None, step: int | None, int8: bool
) -> Opened:
  from rt2_jax import platforms
  from rt2_jax.checkpoint import Checkpoints
  from rt2_jax.policy import Policy
  from rt2_jax.saved_step import SavedStep

  platforms.prepare()
  checkpoints = Checkpoints.open_run(folder)
  # Training may save another one meanwhile.
  place = checkpoints.step_folder(step)
  checkpoints.close()
  saved = SavedStep(place)
  policy = Policy.from_checkpoint(folder, source, saved.step)
  if int8:
    with program.extra("int8"):
      policy = policy.in_int8()
  # With the checksums of all parameters.
  digest = json_hash(saved.meta)
  identity = _identity(folder, saved.step, digest, saved.meta, policy.prompt)
  identity["weights"] = "int8" if int8 else policy.model.llm.dtype
  return Opened(policy, _control_hz(saved.meta, source), identity)


def _exported(folder: storage.Path, source: str | None) -> Opened:
  from rt2_jax.pytorch.policy import TorchPolicy

  with local_copies.of(folder) as local:
    said = (local / ROBOT_FILE).read_bytes()
    digest = hashlib.sha256(said)
    for file in sorted(local.glob("*.safetensors")):
      with file.open("rb") as weights:
        digest.update(hashlib.file_digest(weights, "sha256").digest())
    policy = TorchPolicy.from_folder(local, source)
  meta = json.loads(said)
  identity = _identity(
    str(folder), meta["step"], digest.hexdigest(), meta, policy.prompt
  )
  identity["weights"] = "float32"
  return Opened(policy, _control_hz(meta, source), identity)


def _identity(
  folder: str,
  step: int,
  digest: str,
  meta: Mapping[str, Any],
  prompt: Prompt,
) -> dict[str, Any]:
  return {
    "checkpoint": pathlib.PurePath(folder).name,
    "checkpoint_step": step,
    "checkpoint_sha256": digest,
    "statistics_sha256": json_hash(meta.get("statistics", {})),
    "tokenizer_sha256": meta["tokenizer_sha256"],
    "prompt_template": prompt.template,
    "prompt_length": prompt.prefix_length,
  }


def _control_hz(meta: Mapping[str, Any], source: str | None) -> float | None:
  """Looks up the rate of a source's data, steps per second.

  Older checkpoints do not say it, and only known datasets can be looked up.
  """
  source = source or next(iter(meta["action_tokenizers"]), None)
  if said := meta.get("control_hz", {}).get(source):
    return said
  fields = meta["config"].get("sources", {}).get(source, {})
  dataset = DATASETS.get(fields.get("dataset"))
  if dataset is None or dataset.rate_hz is None:
    return None
  return dataset.rate_hz / fields.get("stride", 1)
