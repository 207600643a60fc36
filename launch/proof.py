"""The proof of a conversion: both sides run on the same inputs, and agree.

Used by launch/convert.py.
"""

import math
import pathlib
import sys

import jax
import psutil

from rt2_jax import storage
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.errors import UserError, first_line
from rt2_jax.policy import Policy
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.weights import agreement, pretrained, processor_agreement
from rt2_jax.weights.agreement import Inputs, Outputs
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint

# Of the memory that is free: activations and the framework need some, too.
_FRACTION_FOR_PARAMETERS = 0.5


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

  try:
    processor = transformers.AutoProcessor.from_pretrained(
      folder, local_files_only=True
    )
  except OSError as error:
    raise UserError(
      f"got {folder}, whose processor transformers cannot load "
      f"({first_line(error)}); copy the folder again"
    ) from error
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


def prove_again(
  before: Outputs, workdir: storage.Path, whole: bool, rounding: float = 0.0
):
  """Runs a written checkpoint, and compares it with the one before."""
  written = StoredCheckpoint.open(workdir)
  after, *_ = run_ours(written, written.read_params(), whole)
  report(agreement.compare(before, after, rounding), whole)


def fits_in_memory(checkpoint: StoredCheckpoint) -> bool:
  """Tells whether a model can run in float32 beside the stored one."""
  shapes = pretrained.parameter_shapes(checkpoint.model)
  numbers = sum(map(math.prod, shapes.values()))
  free = psutil.virtual_memory().available * _FRACTION_FOR_PARAMETERS
  return 4 * numbers < free


def run_ours(
  checkpoint: StoredCheckpoint, params: dict, whole: bool
) -> tuple[Outputs, Inputs, Policy]:
  """Runs our model on the fixed inputs; returns them and the policy, too."""
  model = checkpoint.model
  if not whole:
    model, params = agreement.ends(model, params)
  meta = CheckpointMeta.from_dict(checkpoint.meta)
  text = Tokenizer(checkpoint.tokenizer)
  params = jax.tree.map(lambda leaf: leaf.astype("float32"), params)
  model = agreement.as_float32(model)
  policies = [
    Policy(model, params, meta.make_prompt(text, name), *meta.robot(name))
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
