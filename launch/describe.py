"""Prints what a checkpoint is: `python launch/describe.py DIR`.

Ten lines say how it was trained, what it reads and answers, and how it is
served; --details adds sizes, sources, bounds, percentiles, the prompt, the
tokenizer and versions. DIR is the workdir of a run. Nothing but names and texts
is read: a checkpoint of any size takes a second.
"""

import math
from collections.abc import Iterator, Mapping

from absl import app, flags

from launch import program
from rt2_jax import shipped
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.actions import ActionSpace
from rt2_jax.models.variants import FAMILIES
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint

_STEP = flags.DEFINE_integer(
  "step", None, "Checkpoint; default: the newest.", 0
)
_DETAILS = flags.DEFINE_boolean("details", False, "Print all of it.")


@program.main_on_devices
def main(workdir):
  checkpoint = StoredCheckpoint.open(shipped.find(workdir), _STEP.value)
  for title, line in summary(checkpoint, workdir).items():
    print(f"{title:<12}{line}")
  if _DETAILS.value:
    print()
    print_details(checkpoint)


def print_details(checkpoint: StoredCheckpoint):
  for title, lines in (
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


def summary(checkpoint: StoredCheckpoint, workdir: str) -> dict[str, str]:
  """Says in ten lines what a checkpoint is, by what each line is about."""
  meta, step = checkpoint.meta, checkpoint.step
  config, img = meta["config"], meta["model"]["img"]
  count = sum(math.prod(leaf.shape) for leaf in checkpoint.shapes.values())
  types = sorted({str(leaf.dtype) for leaf in checkpoint.shapes.values()})
  optimizer = config.get("optimizer", {})
  start = meta["base"].get("weights") or config.get("pretrained")
  return {
    "checkpoint": f"{checkpoint.folder}, step {step}",
    "model": f"SigLIP and {FAMILIES[meta['model']['llm']['family']]}, "
    f"{count:,} parameters in {', '.join(types)}; "
    f"{meta['model']['num_images']} x {img['image_size']} px",
    "trained": f"step {step} of {config.get('num_steps', 'an unknown number')}"
    f", batch {config.get('batch_size', 'unknown')}, "
    f"{optimizer.get('name', 'the default optimizer')}, "
    f"seed {config.get('seed', 0)}",
    "from": str(start or "nothing: random parameters"),
    "robot data": examples(meta, "sources", "steps"),
    "web data": examples(meta, "web", "questions"),
    "sees": "; ".join(dict.fromkeys(seen(s) for s in robots(meta).values())),
    "acts": "; ".join(acts(meta)) or "not at all: it answers questions",
    "training": "can go on from it, with optimizer state"
    if checkpoint.has_optimizer
    else "cannot go on from it: inference-only, without optimizer state",
    "serve it": serving(meta, workdir),
  }


def examples(meta: Mapping, kind: str, unit: str) -> str:
  """Counts the examples of all robot or web sources, and names these."""
  names = meta["config"].get(kind, {})
  if not names:
    return "none"
  lengths = [meta["data"].get(name, {}).get("length", 0) for name in names]
  count = f"{sum(lengths):,}" if all(lengths) else "an unknown number of"
  return f"{count} {unit} of {', '.join(names)}"


def robots(meta: Mapping) -> dict[str, dict]:
  """Returns each robot's ObservationSpec; the model's own where none is."""
  return meta["observations"] or {"": meta["observation"]}


def seen(spec: Mapping) -> str:
  cameras = [name for name in spec["cameras"] if name not in spec["missing"]]
  state = f"{len(spec['state']['dimensions'])} numbers" if spec["state"] else ""
  return (
    f"cameras {', '.join(cameras)}; history {spec['history']}; "
    f"state {state or 'none'}"
  )


def acts(meta: Mapping) -> Iterator[str]:
  """Writes what each robot source's actions are."""
  for name, fields in meta["action_tokenizers"].items():
    tokens = ActionTokenizer.from_dict(fields)
    yield (
      f"{name}: space {tokens.space.name!r}, {len(tokens.space.dimensions)} "
      f"numbers, horizon {tokens.horizon}, as {type(tokens.route).__name__}"
    )


def serving(meta: Mapping, workdir: str) -> str:
  """Writes the command that serves it to robots, or says why there is none."""
  if not meta["action_tokenizers"]:
    return "cannot: it has no robot source"
  robots = list(meta["action_tokenizers"])
  source = f" --source={robots[0]}" if len(robots) > 1 else ""
  return (
    f"python launch/serve.py --checkpoint={workdir}{source} "
    "--camera_sizes=HEIGHTxWIDTH"
  )


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
  width = max(map(len, statistics["dimensions"]))
  for name, row in statistics["dimensions"].items():
    span = f"{row['q01']:>+11.4g} ..{row['q99']:>+11.4g} {row['unit']}"
    yield f"{name:<{width}}{span}"


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
  width = max(map(len, space.names))
  for d in space.dimensions:
    span = f"{d.low:+.4g} .. {d.high:+.4g}"
    if d.values:
      span = "one of " + ", ".join(f"{v:g}" for v in d.values)
    yield f"  {d.name:<{width}} {span} {d.unit}"


def tokenizer(checkpoint: StoredCheckpoint) -> Iterator[str]:
  text = Tokenizer(checkpoint.tokenizer)
  yield f"SentencePiece, {text.vocab_size:,} tokens with <loc> and <seg>"
  yield f"sha256 {text.sha256}"


def versions(meta: dict) -> Iterator[str]:
  for library, version in meta["versions"].items():
    yield f"{library} {version}"


if __name__ == "__main__":
  app.run(main)
