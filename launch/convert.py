"""Converts a checkpoint, and proves it: `python launch/convert.py COMMAND …`.

    to_hf          a folder for stock transformers, and for `TorchPolicy`
    from_hf        such a folder (--folder) as a checkpoint to act from
    to_big_vision  an .npz file as big_vision has it
    merge          a LoRA run as a model without adapters, to act from
    to_peft        the adapters of a LoRA run, for PEFT on stock transformers
    from_peft      the checkpoint of a LoRA run, with adapters from --folder
    strip          the same checkpoint without optimizer state
    average        the mean of several steps, e.g. --steps=1000,2000

All but average and those of PEFT end by running both sides in float32 on the
same inputs, and a folder's own processor on prompts and pictures. The result
gets its name when they agree; when they do not, the program fails and leaves
nothing. to_hf and from_hf need the extra [torch].
"""

import contextlib
import dataclasses
import math
import pathlib
import sys
from collections.abc import Iterator

import absl.logging
import jax
import psutil
from absl import app, flags

from rt2_jax import local_copies, platforms, storage, trees
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.errors import UserError, ends_in_one_message, unknown_name
from rt2_jax.models.variants import VLMConfig
from rt2_jax.policy import Policy
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.weights import (
  agreement,
  export,
  lora_base,
  merging,
  peft_format,
  pretrained,
  processor_agreement,
  stored_checkpoint,
)
from rt2_jax.weights.agreement import Inputs, Outputs
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a training run.")
_FOLDER = flags.DEFINE_string(
  "folder", None, "What from_hf or from_peft reads."
)
_STEP = flags.DEFINE_integer(
  "step", None, "Checkpoint; default: the newest.", 0
)
_STEPS = flags.DEFINE_list("steps", [], "Checkpoints to average.")
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16"],
  "For to_big_vision, default: as it is; for merge, default: float32.",
)
_COMPRESSED = flags.DEFINE_bool(
  "compressed", False, "A smaller file of to_big_vision, written slowly."
)
_OUTPUT = flags.DEFINE_string("output", None, "Where the result goes.")
# Of the memory that is free: activations and the framework need some, too.
_SHARE_FOR_PARAMETERS = 0.5


@ends_in_one_message
def main(argv):
  platforms.prepare()
  commands = {
    "to_hf": to_hf,
    "from_hf": from_hf,
    "to_big_vision": to_big_vision,
    "merge": merge,
    "to_peft": to_peft,
    "from_peft": from_peft,
    "strip": strip,
    "average": average,
  }
  if len(argv) != 2:
    raise app.UsageError(
      f"got {argv[1:]}, expected one command of {', '.join(commands)}"
    )
  if argv[1] not in commands:
    raise unknown_name("the command", argv[1], commands)
  reads = {"from_hf": (_FOLDER,), "from_peft": (_WORKDIR, _FOLDER)}
  for source in reads.get(argv[1], (_WORKDIR,)):
    if source.value is None:
      raise app.UsageError(f"got no --{source.name}, which {argv[1]} reads")
  absl.logging.set_verbosity(absl.logging.ERROR)
  commands[argv[1]](storage.locate(_OUTPUT.value, "--output"))


def to_hf(output: storage.Path):
  """Writes weights, configs, tokenizer and rt2.json; runs PyTorch on them."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  checkpoint.check_merged()
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  with proven_locally(output) as folder:
    export.to_huggingface(
      checkpoint.read_params(),
      model,
      checkpoint.meta,
      checkpoint.tokenizer,
      folder,
      checkpoint.step,
    )
    prove(checkpoint, folder)
  print(f"wrote {output}")


def from_hf(output: storage.Path):
  """Writes a checkpoint of the weights and of all that rt2.json keeps."""
  # transformers reads it too.
  with local_copies.of(storage.locate(_FOLDER.value, "--folder")) as folder:
    meta, tokenizer, step = export.read_meta(folder)
    model = VLMConfig.from_dict(meta["model"])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    names = pretrained.parameter_shapes(model)
    shardings = trees.unflatten(dict.fromkeys(names, device))
    dtype = pretrained.read_dtype(folder)
    with proven(output) as workdir:
      params = pretrained.load(folder, model, shardings, dtype)
      stored_checkpoint.write(params, meta, tokenizer, step, workdir)
      del params  # room for the other side
      prove(StoredCheckpoint.open(workdir), folder)
  print(f"wrote {output}/checkpoints/{step}")


def prove(checkpoint: StoredCheckpoint, folder: pathlib.Path):
  """Runs a checkpoint, and stock transformers on the folder of the same policy.

  The folder's own processor reads prompts and pictures for it.
  """
  whole = fits_in_memory(checkpoint)
  ours, inputs, policy = run_ours(checkpoint, checkpoint.read_params(), whole)
  prompt, size = policy.prompt, policy.model
  del policy  # room for the other side
  import transformers

  from rt2_jax.pytorch.policy import TorchPolicy
  from rt2_jax.weights import torch_ends

  processor = transformers.AutoProcessor.from_pretrained(
    folder, local_files_only=True
  )
  read = processor_agreement.compare(
    processor, prompt, size.img, size.num_images
  )
  print(read)
  if not read.holds:
    raise UserError(
      "got a folder whose processor reads prompts or pictures otherwise than "
      "our model, expected the same; nothing was written"
    )
  names = agreement.sources(checkpoint.meta["action_tokenizers"])
  if whole:
    first = TorchPolicy.from_folder(folder, names[0])
  else:
    first = TorchPolicy.around(torch_ends.load(folder), folder, names[0])
  others = [TorchPolicy.around(first.model, folder, n) for n in names[1:]]
  theirs = agreement.torch_outputs([first, *others], processor, inputs)
  report(agreement.compare(ours, theirs), whole)


def to_big_vision(output: storage.Path):
  """Writes one file; `pretrained` reads it back."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  checkpoint.check_merged()
  params = checkpoint.read_params()
  dtype = _DTYPE.value or str(jax.tree.leaves(params)[0].dtype)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  whole = fits_in_memory(checkpoint)
  with proven_locally(output, replace=True) as path:
    stored = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    export.to_big_vision(stored, path, _COMPRESSED.value)
    del stored
    read = pretrained.load(path, model, shardings, dtype)
    rounding = agreement.largest_rounding(params, read)
    ours, *_ = run_ours(checkpoint, params, whole)
    del params  # room for the other side
    theirs, *_ = run_ours(checkpoint, read, whole)
    report(agreement.compare(ours, theirs, rounding), whole)
  print(f"wrote {output}")


def merge(output: storage.Path):
  """Writes a checkpoint whose matrices hold their adapters' products."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  checkpoint.check_adapted()
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  whole = fits_in_memory(checkpoint)
  with proven(output) as workdir:
    params = lora_base.restore_whole(checkpoint)
    before, *_ = run_ours(checkpoint, params, whole)
    exact = merging.merge(params, model)
    del params  # room for the other side
    dtype = _DTYPE.value or "float32"
    stored = jax.tree.map(lambda leaf: leaf.astype(dtype), exact)
    rounding = agreement.largest_rounding(exact, stored)
    meta = checkpoint.meta | {"base": {}}
    meta["model"] = dataclasses.asdict(model.without_adapters())
    items = meta, checkpoint.tokenizer, checkpoint.step
    stored_checkpoint.write(stored, *items, workdir)
    del exact, stored
    merged = StoredCheckpoint.open(workdir)
    after, *_ = run_ours(merged, merged.read_params(), whole)
    report(agreement.compare(before, after, rounding), whole)
  print(f"wrote {output}/checkpoints/{checkpoint.step}")


def to_peft(output: storage.Path):
  """Writes the adapters; the base is where the run found it."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  checkpoint.check_adapted()
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  with proven_locally(output) as folder:
    name = str(checkpoint.meta["base"]["weights"])
    peft_format.write(checkpoint.read_params(), model, name, folder)
  print(f"wrote {output}")


def from_peft(output: storage.Path):
  """Writes an inference-only checkpoint of the run --workdir."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  checkpoint.check_adapted()
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  own = trees.flatten(checkpoint.read_params())
  folder = storage.locate(_FOLDER.value, "--folder")
  read = trees.flatten(peft_format.read(folder, trees.unflatten(own), model))
  with proven(output) as workdir:
    save(trees.unflatten(own | read), checkpoint, workdir)
  print(f"wrote {output}/checkpoints/{checkpoint.step}")


def strip(output: storage.Path):
  """Writes a checkpoint that is inference-only, a third of the size."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  checkpoint.check_merged()
  whole = fits_in_memory(checkpoint)
  with proven(output) as workdir:
    params = checkpoint.read_params()
    save(params, checkpoint, workdir)
    before, *_ = run_ours(checkpoint, params, whole)
    del params  # room for the other side
    stripped = StoredCheckpoint.open(workdir)
    after, *_ = run_ours(stripped, stripped.read_params(), whole)
    report(agreement.compare(before, after), whole)
  print(f"wrote {output}/checkpoints/{checkpoint.step}")


def average(output: storage.Path):
  """Writes a checkpoint whose parameters are the mean of several."""
  words = [word for word in _STEPS.value if not word.strip().isdecimal()]
  if words:
    raise UserError(
      f"got --steps={','.join(_STEPS.value)}, expected whole numbers such as "
      "--steps=1000,2000"
    )
  checkpoints = [
    StoredCheckpoint.open(_WORKDIR.value, int(step)) for step in _STEPS.value
  ]
  for checkpoint in checkpoints:
    checkpoint.check_merged()
  with proven(output) as workdir:
    mean = stored_checkpoint.average(checkpoints)
    save(mean, checkpoints[-1], workdir)
  print(f"wrote {output}/checkpoints/{checkpoints[-1].step}")


def save(params: dict, like: StoredCheckpoint, workdir: storage.Path):
  """Writes parameters with all else from a checkpoint."""
  stored_checkpoint.write(params, like.meta, like.tokenizer, like.step, workdir)


@contextlib.contextmanager
def proven(
  output: storage.Path, replace: bool = False
) -> Iterator[storage.Path]:
  """Yields a place beside the output, which gets its name at the end.

  What fails, or is cut off, leaves nothing under the output's name.

  Args:
    output: a file or a folder.
    replace: whether a file may lie there already.

  Raises:
    UserError: something lies there; before any work.
  """
  output = output.absolute()
  used = output.is_file() or (output.is_dir() and any(output.iterdir()))
  if used and not (replace and output.is_file()):
    raise UserError(
      f"got output {output}, which exists; choose another, or remove it"
    )
  place = output.with_name(f"{output.name}.unproven")
  storage.output_folder(place.parent, "--output")
  storage.remove(place)
  try:
    yield place
    storage.move(place, output)
  finally:
    storage.remove(place)


@contextlib.contextmanager
def proven_locally(
  output: storage.Path, replace: bool = False
) -> Iterator[pathlib.Path]:
  """Yields the same on this machine, for libraries that write to no other."""
  if not storage.is_url(output):
    with proven(output, replace) as place:
      yield place
    return
  with (
    proven(output, replace) as place,
    local_copies.made_for(place) as local,
  ):
    yield local


def fits_in_memory(checkpoint: StoredCheckpoint) -> bool:
  """Whether the whole model can run in float32 beside the stored one."""
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  numbers = sum(map(math.prod, pretrained.parameter_shapes(model).values()))
  free = psutil.virtual_memory().available * _SHARE_FOR_PARAMETERS
  return 4 * numbers < free


def run_ours(
  checkpoint: StoredCheckpoint, params: dict, whole: bool
) -> tuple[Outputs, Inputs, Policy]:
  """Runs our model on the fixed inputs; returns them and the policy, too."""
  model = VLMConfig.from_dict(checkpoint.meta["model"])
  if not whole:
    model, params = agreement.ends(model, params)
  meta = CheckpointMeta.from_dict(checkpoint.meta)
  prompt = meta.make_prompt(Tokenizer(checkpoint.tokenizer))
  params = jax.tree.map(lambda leaf: leaf.astype("float32"), params)
  model = agreement.as_float32(model)
  policies = [
    Policy(model, params, prompt, *meta.robot(name))
    for name in agreement.sources(checkpoint.meta["action_tokenizers"])
  ]
  inputs = agreement.fixed_inputs(policies[0])
  return agreement.flax_outputs(policies, inputs), inputs, policies[0]


def report(result: agreement.Agreement, whole: bool):
  """Prints the proof; ends the program when it fails."""
  print(
    "both sides in float32 on the same inputs"
    + ("" if whole else ", the first and last layers only (memory)")
  )
  print(result)
  if not result.holds:
    sys.exit("got another model than the checkpoint's: nothing was written")


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  app.run(main)
