"""Converts a checkpoint, and proves it: `python launch/convert.py COMMAND …`.

    to_hf          a folder for stock transformers, and for `TorchPolicy`
    from_hf        such a folder (--folder) as an inference-only checkpoint
    to_big_vision  an .npz file as big_vision has it
    merge          a LoRA run as a model without adapters, inference-only
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
import pathlib
from collections.abc import Iterator

import jax
from absl import app, flags

from launch import program
from rt2_jax import local_copies, storage, trees
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.models import lora
from rt2_jax.models.variants import VLMConfig

with program.extra("torch"):
  from launch import proof
  from rt2_jax.weights import (
    agreement,
    export,
    lora_base,
    merging,
    peft_format,
    pretrained,
    stored_checkpoint,
  )
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
  "Of to_big_vision and strip, default: as it is; of merge: float32.",
)
_COMPRESSED = flags.DEFINE_bool(
  "compressed", False, "A smaller file of to_big_vision, written slowly."
)
_OUTPUT = flags.DEFINE_string("output", None, "Where the result goes.")

# Flags that some commands do not read, and those that do.
_READERS = (
  (_FOLDER, ("from_hf", "from_peft")),
  (_STEP, ("to_hf", "to_big_vision", "merge", "to_peft", "from_peft", "strip")),
  (_STEPS, ("average",)),
  (_DTYPE, ("to_big_vision", "merge", "strip")),
  (_COMPRESSED, ("to_big_vision",)),
)


@program.main_on_devices
def main(command):
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
  if command not in commands:
    raise unknown_name("the command", command, commands)
  reads = {"from_hf": (_FOLDER,), "from_peft": (_WORKDIR, _FOLDER)}
  for source in reads.get(command, (_WORKDIR,)):
    if source.value is None:
      raise app.UsageError(f"got no --{source.name}, which {command} reads")
  for flag, readers in _READERS:
    if flag.present and command not in readers:
      raise UserError(
        f"got --{flag.name}, which {command} does not read, expected it with "
        f"{', '.join(readers)} alone; leave it out"
      )
  commands[command](storage.locate(_OUTPUT.value, "--output"))


def to_hf(output: storage.Path):
  """Writes weights, configs, tokenizer and rt2.json; runs PyTorch on them."""
  checkpoint = open_merged()
  with proven_locally(output) as folder:
    export.stored_to_huggingface(checkpoint, folder)
    proof.prove(checkpoint, folder)
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
      proof.prove(StoredCheckpoint.open(workdir), folder)
  print(f"wrote {output}/checkpoints/{step}")


def to_big_vision(output: storage.Path):
  """Writes one file, and reads it back."""
  checkpoint = open_merged()
  params = checkpoint.read_params()
  dtype = _DTYPE.value or str(jax.tree.leaves(params)[0].dtype)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
  whole = proof.fits_in_memory(checkpoint)
  with proven_locally(output, replace=True) as path:
    stored = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    export.to_big_vision(stored, path, _COMPRESSED.value)
    del stored
    read = pretrained.load(path, checkpoint.model, shardings, dtype)
    rounding = agreement.largest_rounding(params, read)
    ours, *_ = proof.run_ours(checkpoint, params, whole)
    del params  # room for the other side
    theirs, *_ = proof.run_ours(checkpoint, read, whole)
    proof.report(agreement.compare(ours, theirs, rounding), whole)
  print(f"wrote {output}")


def merge(output: storage.Path):
  """Writes a checkpoint whose matrices hold their adapters' products."""
  checkpoint = open_adapted()
  whole = proof.fits_in_memory(checkpoint)
  with proven(output) as workdir:
    params = lora_base.restore_whole(checkpoint)
    before, *_ = proof.run_ours(checkpoint, params, whole)
    exact = merging.merge(params, checkpoint.model)
    del params  # room for the other side
    meta = checkpoint.meta | {"base": {}}
    meta["model"] = dataclasses.asdict(checkpoint.model.without_adapters())
    like = dataclasses.replace(checkpoint, meta=meta)
    rounding = save(exact, like, workdir, _DTYPE.value or "float32")
    del exact
    proof.prove_again(before, workdir, whole, rounding)
  print(f"wrote {output}/checkpoints/{checkpoint.step}")


def to_peft(output: storage.Path):
  """Writes the adapters; the base is where the run found it."""
  checkpoint = open_adapters_alone()
  with proven_locally(output) as folder:
    name = str(checkpoint.meta["base"]["weights"])
    peft_format.write(checkpoint.read_params(), checkpoint.model, name, folder)
  print(f"wrote {output}")


def from_peft(output: storage.Path):
  """Writes an inference-only checkpoint of the run --workdir."""
  checkpoint = open_adapters_alone()
  own = checkpoint.read_params()
  folder = storage.locate(_FOLDER.value, "--folder")
  read = peft_format.read(folder, own, checkpoint.model)
  both = trees.flatten(own) | trees.flatten(read)
  with proven(output) as workdir:
    save(trees.unflatten(both), checkpoint, workdir)
  print(f"wrote {output}/checkpoints/{checkpoint.step}")


def strip(output: storage.Path):
  """Writes a checkpoint that is inference-only, a third of the size."""
  checkpoint = open_merged()
  whole = proof.fits_in_memory(checkpoint)
  with proven(output) as workdir:
    params = checkpoint.read_params()
    before, *_ = proof.run_ours(checkpoint, params, whole)
    rounding = save(params, checkpoint, workdir, _DTYPE.value)
    del params  # room for the other side
    proof.prove_again(before, workdir, whole, rounding)
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


def open_merged() -> StoredCheckpoint:
  """Opens a checkpoint of a whole model."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  checkpoint.check_merged()
  return checkpoint


def open_adapted() -> StoredCheckpoint:
  """Opens a checkpoint of a LoRA run."""
  checkpoint = StoredCheckpoint.open(_WORKDIR.value, _STEP.value)
  checkpoint.check_adapted()
  return checkpoint


def open_adapters_alone() -> StoredCheckpoint:
  """Opens a checkpoint of a LoRA run that trained nothing of its base.

  PEFT's folder would lack what it trained there: another model, without a word.
  """
  checkpoint = open_adapted()
  rest = checkpoint.shapes.keys() - lora.adapters(checkpoint.shapes)
  if rest:
    raise UserError(
      f"got {checkpoint.folder}, whose run trained {len(rest)} arrays of the "
      f"base beside the adapters, such as {min(rest)}, expected adapters "
      "alone, which is what a folder of PEFT holds; use merge, then to_hf"
    )
  return checkpoint


def save(
  params: dict,
  like: StoredCheckpoint,
  workdir: storage.Path,
  dtype: str | None = None,
) -> float:
  """Writes parameters with all else from a checkpoint.

  Args:
    dtype: of the written parameters; None: as they are.

  Returns:
    The largest change of a parameter, as a fraction of itself.
  """
  stored = params
  if dtype:
    stored = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  stored_checkpoint.write(stored, like.meta, like.tokenizer, like.step, workdir)
  # A pass over every parameter, which nothing but rounding needs.
  return agreement.largest_rounding(params, stored) if dtype else 0.0


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


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  app.run(main)
