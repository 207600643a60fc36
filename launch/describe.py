"""Prints what a checkpoint is: `python launch/describe.py DIR`.

DIR is the workdir of a run. Nothing but names and texts is read: a checkpoint
of any size takes a second.
"""

import math
from collections.abc import Iterator

from absl import app, flags

from launch import program
from rt2_jax.actions import ActionSpace, ActionTokenizer
from rt2_jax.models.variants import FAMILIES
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint

_STEP = flags.DEFINE_integer(
  "step", None, "Checkpoint; default: the newest.", 0
)


@program.main_on_devices
def main(workdir):
  checkpoint = StoredCheckpoint.open(workdir, _STEP.value)
  for title, lines in (
    ("checkpoint", place(checkpoint)),
    ("parameters", parameters(checkpoint)),
    ("sources", sources(checkpoint.meta)),
    ("prompt", prompt(checkpoint.meta)),
    ("tokenizer", tokenizer(checkpoint)),
    ("versions", versions(checkpoint.meta)),
  ):
    print(f"{title}")
    for line in lines:
      print(f"  {line}")
    print()


def place(checkpoint: StoredCheckpoint) -> Iterator[str]:
  yield f"{checkpoint.folder}, step {checkpoint.step}"
  if checkpoint.has_optimizer:
    yield "with optimizer state: training can go on from it"
  else:
    yield "without optimizer state: inference-only"


def parameters(checkpoint: StoredCheckpoint) -> Iterator[str]:
  """Counts and types of the model's parts, and its sizes."""
  parts = {
    "encoder": "img/",
    "token table": "llm/embedder/",
    "decoder layers": "llm/",
  }
  counts, types = dict.fromkeys(parts, 0), set()
  for name, leaf in checkpoint.shapes.items():
    part = next(p for p, prefix in parts.items() if name.startswith(prefix))
    counts[part] += math.prod(leaf.shape)
    types.add(str(leaf.dtype))
  for part, count in counts.items():
    yield f"{part:<15}{count:>15,}"
  yield f"{'all':<15}{sum(counts.values()):>15,} {', '.join(sorted(types))}"
  model = checkpoint.meta["model"]
  img, llm = model["img"], model["llm"]
  yield (
    f"SigLIP: width {img['width']}, {img['depth']} layers; "
    f"{model['num_images']} x {img['image_size']} px, patches of "
    f"{img['patch_size']} px"
  )
  yield (
    f"{FAMILIES[llm['family']]}: width {llm['width']}, "
    f"{llm['depth']} layers; {llm['vocab_size']:,} tokens"
  )


def sources(meta: dict) -> Iterator[str]:
  """Describes the training data, and what actions mean there."""
  for name, fields in meta["config"].get("sources", {}).items():
    details = ", ".join(f"{key}={value}" for key, value in fields.items())
    yield f"{name}: {details}"
    if name in meta["action_tokenizers"]:
      tokens = ActionTokenizer.from_dict(meta["action_tokenizers"][name])
      yield from (f"  {line}" for line in space_lines(tokens.space))
      yield f"  written as {type(tokens.route).__name__}"
    if name in meta.get("statistics", {}):
      yield from (f"  {line}" for line in percentiles(meta["statistics"][name]))
  for name, fields in meta["config"].get("web", {}).items():
    details = ", ".join(f"{key}={value}" for key, value in fields.items())
    yield f"{name} (web): {details}"


def percentiles(statistics: dict) -> Iterator[str]:
  """Formats the measured percentiles of its actions."""
  yield (
    f"1st to 99th percentile of {statistics['num_steps']:,} steps in "
    f"{statistics['num_episodes']:,} episodes"
  )
  for name, row in statistics["dimensions"].items():
    yield f"{name:<10}{row['q01']:>+11.4g} ..{row['q99']:>+11.4g} {row['unit']}"


def prompt(meta: dict) -> Iterator[str]:
  fields = meta["prompt"]
  yield repr(fields["template"])
  yield (
    f"at most {fields['prefix_length']} tokens of question and "
    f"{fields['suffix_length']} of answer"
  )


def space_lines(space: ActionSpace) -> Iterator[str]:
  """Writes a line for an action space and for each of its dimensions."""
  yield f"action space {space.name!r}, frame: {space.frame}"
  for d in space.dimensions:
    span = f"{d.low:+.4g} .. {d.high:+.4g}"
    if d.values:
      span = "one of " + ", ".join(f"{v:g}" for v in d.values)
    yield f"  {d.name:<12} {span} {d.unit}"


def tokenizer(checkpoint: StoredCheckpoint) -> Iterator[str]:
  text = Tokenizer(checkpoint.tokenizer)
  yield f"SentencePiece, {text.vocab_size:,} tokens with <loc> and <seg>"
  yield f"sha256 {text.sha256}"


def versions(meta: dict) -> Iterator[str]:
  for library, version in meta["versions"].items():
    yield f"{library} {version}"


if __name__ == "__main__":
  app.run(main)
