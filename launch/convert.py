"""Converts a checkpoint, and proves it: `python launch/convert.py COMMAND …`.

    to_hf          a folder for stock transformers, and for `TorchPolicy`
    from_hf        such a folder (--folder) as a checkpoint to act from
    to_big_vision  an .npz file as big_vision has it
    strip          the same checkpoint without optimizer state
    average        the mean of several steps, e.g. --steps=1000,2000

All but the last end by running both sides in float32 on the same inputs; the
program fails when they disagree. to_hf and from_hf need the extra [torch].
"""

import pathlib
import re
import sys
from collections.abc import Mapping

import absl.logging
import jax
import psutil
from absl import app, flags

from rt2_jax import (
  export,
  huggingface,
  pretrained,
  stored_checkpoint,
  trees,
  weight_files,
)
from rt2_jax.actions import RT2, ActionTokenizer
from rt2_jax.errors import ends_in_one_message, unknown_name
from rt2_jax.evaluators import agreement
from rt2_jax.evaluators.agreement import Inputs, Outputs
from rt2_jax.models.variants import VLMConfig
from rt2_jax.policy import Policy
from rt2_jax.prompt import Prompt
from rt2_jax.stored_checkpoint import StoredCheckpoint
from rt2_jax.tokenizer import Tokenizer

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a training run.")
_FOLDER = flags.DEFINE_string("folder", None, "What to_hf wrote, for from_hf.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the newest.")
_STEPS = flags.DEFINE_list("steps", [], "Checkpoints to average.")
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16"],
  "For to_big_vision; default: as it is.",
)
_COMPRESSED = flags.DEFINE_bool(
  "compressed", False, "A smaller file of to_big_vision, written slowly."
)
_OUTPUT = flags.DEFINE_string("output", None, "Where the result goes.")
# Of the memory that is free: activations and the framework need some, too.
_SHARE_FOR_PARAMETERS = 0.5


@ends_in_one_message
def main(argv):
  commands = {
    "to_hf": to_hf,
    "from_hf": from_hf,
    "to_big_vision": to_big_vision,
    "strip": strip,
    "average": average,
  }
  if len(argv) != 2:
    raise app.UsageError(
      f"got {argv[1:]}, expected one command of {', '.join(commands)}"
    )
  if argv[1] not in commands:
    raise unknown_name("the command", argv[1], commands)
  source = _FOLDER if argv[1] == "from_hf" else _WORKDIR
  if source.value is None:
    raise app.UsageError(f"got no --{source.name}, which {argv[1]} reads")
  absl.logging.set_verbosity(absl.logging.ERROR)
  commands[argv[1]](pathlib.Path(_OUTPUT.value))


def to_hf(folder: pathlib.Path):
  """Weights, configs, tokenizer and rt2.json, and PyTorch run on them."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  params = checkpoint.read_params()
  export.to_huggingface(
    params,
    model,
    checkpoint.meta,
    checkpoint.tokenizer,
    folder,
    checkpoint.step,
  )
  print(f"wrote {folder}")
  del params  # room for the other side
  prove(checkpoint, folder)


def from_hf(workdir: pathlib.Path):
  """A checkpoint of the weights and of all that rt2.json keeps."""
  folder = pathlib.Path(_FOLDER.value)
  meta, tokenizer, step = export.read_meta(folder)
  model = VLMConfig.from_dict(meta["model"])
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  names = pretrained.parameter_shapes(model)
  shardings = trees.unflatten(dict.fromkeys(names, device))
  dtype = pretrained.read_dtype(folder)
  params = pretrained.load(folder, model, shardings, dtype)
  write = stored_checkpoint.write
  print(f"wrote {write(params, meta, tokenizer, step, workdir)}")
  del params  # room for the other side
  prove(StoredCheckpoint.open(workdir), folder)


def prove(checkpoint: StoredCheckpoint, folder: pathlib.Path):
  """Runs a checkpoint, and PyTorch on the folder of the same policy."""
  whole = fits_in_memory(checkpoint)
  ours, inputs = run_ours(checkpoint, checkpoint.read_params(), whole)
  from rt2_jax.torch_policy import TorchPolicy

  source = next(iter(checkpoint.meta["action_tokenizers"]))
  if whole:
    theirs = TorchPolicy.from_folder(folder, source)
  else:
    theirs = TorchPolicy.around(torch_ends(folder), folder, source)
  report(ours, agreement.torch_outputs(theirs, inputs), whole)


def to_big_vision(path: pathlib.Path):
  """One file, read back by `pretrained`."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  params = checkpoint.read_params()
  if _DTYPE.value:
    params = jax.tree.map(lambda leaf: leaf.astype(_DTYPE.value), params)
  path.parent.mkdir(parents=True, exist_ok=True)
  export.to_big_vision(params, path, _COMPRESSED.value)
  print(f"wrote {path}")
  whole = fits_in_memory(checkpoint)
  ours, _ = run_ours(checkpoint, params, whole)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
  dtype = jax.tree.leaves(params)[0].dtype
  del params
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  read = pretrained.load(path, model, shardings, str(dtype))
  report(ours, run_ours(checkpoint, read, whole)[0], whole)


def strip(workdir: pathlib.Path):
  """A checkpoint to act from, a third of the size."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  params = checkpoint.read_params()
  save(params, checkpoint, workdir)
  whole = fits_in_memory(checkpoint)
  before, _ = run_ours(checkpoint, params, whole)
  del params  # room for the other side
  stripped = StoredCheckpoint.open(workdir)
  after, _ = run_ours(stripped, stripped.read_params(), whole)
  report(before, after, whole)


def average(workdir: pathlib.Path):
  """A checkpoint whose parameters are the mean of several."""
  checkpoints = [
    StoredCheckpoint.open(_WORKDIR.value, int(step)) for step in _STEPS.value
  ]
  save(stored_checkpoint.average(checkpoints), checkpoints[-1], workdir)


def save(params: dict, like: StoredCheckpoint, workdir: pathlib.Path):
  """Writes parameters with all else from a checkpoint."""
  folder = stored_checkpoint.write(
    params, like.meta, like.tokenizer, like.step, workdir
  )
  print(f"wrote {folder}")


def fits_in_memory(checkpoint: StoredCheckpoint) -> bool:
  """Whether the whole model can run in float32 beside the stored one."""
  numbers = sum(leaf.size for leaf in checkpoint.shapes.values())
  free = psutil.virtual_memory().available * _SHARE_FOR_PARAMETERS
  return 4 * numbers < free


def run_ours(
  checkpoint: StoredCheckpoint, params: dict, whole: bool
) -> tuple[Outputs, Inputs]:
  """What our model makes of the fixed inputs, which are returned, too."""
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  if not whole:
    model, params = agreement.ends(model, params)
  tokenizer = Tokenizer(checkpoint.tokenizer)
  policy = Policy(
    agreement.as_float32(model),
    jax.tree.map(lambda leaf: leaf.astype("float32"), params),
    Prompt(tokenizer, **checkpoint.meta["prompt"]),
    some_actions(checkpoint.meta["action_tokenizers"], tokenizer),
  )
  inputs = agreement.fixed_inputs(policy)
  return agreement.flax_outputs(policy, inputs), inputs


def some_actions(
  action_tokenizers: Mapping[str, dict], tokenizer: Tokenizer
) -> ActionTokenizer:
  """The first robot's; RT-2's where the model was trained on none."""
  for stored in action_tokenizers.values():
    return ActionTokenizer.from_dict(stored)
  return ActionTokenizer(RT2, tokenizer.action_route("rare"))


def torch_ends(folder: pathlib.Path):
  """The first and last layers of the model in a folder, in PyTorch, float32."""
  import torch
  import transformers

  config = transformers.AutoConfig.from_pretrained(folder)
  layers = {}
  for part, prefix in (
    (config.vision_config, "vision_tower.encoder.layers."),
    (config.text_config, "language_model.layers."),
  ):
    layers[f"{prefix}0."] = f"{prefix}0."
    layers[f"{prefix}{part.num_hidden_layers - 1}."] = f"{prefix}1."
    part.num_hidden_layers = 2
  if hasattr(config.text_config, "layer_types"):
    config.text_config.layer_types = config.text_config.layer_types[:2]
  model = transformers.PaliGemmaForConditionalGeneration(config).float()
  state = dict(model.model.named_parameters())
  loaded = set()
  for stored, tensor in weight_files.open_safetensors(folder).items():
    name = huggingface.table_name(stored)
    start = re.match(r".*\.layers\.\d+\.", name)
    if start:
      if start[0] not in layers:
        continue
      name = layers[start[0]] + name.removeprefix(start[0])
    with torch.no_grad():
      state[name].copy_(torch.from_numpy(tensor.read().astype("float32")))
    loaded.add(name)
  assert loaded == set(state), loaded ^ set(state)
  return model


def report(ours: Outputs, theirs: Outputs, whole: bool):
  """Prints the proof; ends the program when it fails."""
  result = agreement.compare(ours, theirs)
  print(
    "both sides in float32 on the same inputs"
    + ("" if whole else ", the first and last layers only (memory)")
  )
  print(result)
  if not result.holds:
    sys.exit("got another model than the checkpoint's: do not use the output")


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  app.run(main)
