"""Parameter trees as flat dictionaries: `"llm/final_norm/scale"` -> array.

A tree is nested dictionaries with arrays at the leaves. Flat names, joined by
"/", are how checkpoints, sharding rules and error messages speak of parameters.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rt2_jax.errors import UserError

# One array per layer, as some checkpoint files have it:
# img/Transformer/encoderblock_{i}/… and llm/layers/{i}/….
_LAYER = re.compile(
  r"(.*(?:^|/)(?:encoderblock(?=_)|layers(?=/)))[_/](\d+)(/.*)"
)
# One array for all layers, as models and checkpoints of ours have it.
_STACK = re.compile(r"(^|/)(encoderblock|layers)/")


def is_stacked(name: str) -> bool:
  """Tells whether axis 0 of a parameter counts layers."""
  return bool(_STACK.search(name))


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dictionaries -> one, in the tree's own order.

  An empty dictionary has no leaves, so nothing of it remains.

  Raises:
    UserError: a key holds a "/", which `unflatten` would split.
  """
  flat = {}
  for key, value in tree.items():
    if "/" in key:
      raise UserError(
        f"got the key {key!r} in a nested tree, expected no '/' in it: is this "
        "a flat dictionary already?"
      )
    if isinstance(value, Mapping):
      flat.update({f"{key}/{k}": v for k, v in flatten(value).items()})
    else:
      flat[key] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`.

  Raises:
    UserError: a name is both a leaf and the parent of another one.
  """
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise UserError(f"got {name!r} below {parent!r}, which is a leaf")
    if last in node:
      raise UserError(f"got the leaf {name!r}, which is also a parent")
    node[last] = leaf
  return tree


def split_layer(name: str) -> tuple[str, int | None]:
  """`"llm/layers/3/mlp/linear"` -> `("llm/layers/mlp/linear", 3)`.

  Names without a layer index come back as they are, with None.
  """
  match = _LAYER.fullmatch(name)
  if match is None:
    return name, None
  parent, index, rest = match.groups()
  return parent + rest, int(index)


def split(
  tree: Mapping[str, Any], patterns: Sequence[str], what: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The leaves whose names some pattern is found in, and the others.

  Raises:
    UserError: a pattern that is found in no name, called `what`.
  """
  flat = flatten(tree)
  found = matching(flat, patterns, what)
  return (
    unflatten({name: leaf for name, leaf in flat.items() if name in found}),
    unflatten({name: leaf for name, leaf in flat.items() if name not in found}),
  )


def join(*trees: Mapping[str, Any]) -> dict[str, Any]:
  """One tree of the leaves of several: the inverse of `split`.

  Raises:
    UserError: two of them hold the same name.
  """
  flat: dict[str, Any] = {}
  for tree in map(flatten, trees):
    twice = flat.keys() & tree.keys()
    if twice:
      raise UserError(f"got {min(twice)!r} in two trees")
    flat |= tree
  return unflatten(flat)


def matching(
  names: Iterable[str], patterns: Sequence[str], what: str
) -> set[str]:
  """Selects the names in which some pattern is found.

  Raises:
    UserError: a pattern that is found in no name, or is none, called `what`.
  """
  check_patterns(patterns, what)
  names = list(names)
  found: set[str] = set()
  for pattern in patterns:
    hits = {name for name in names if re.search(pattern, name)}
    if not hits:
      raise UserError(
        f"got {what} {pattern!r}, which matches no parameter; the parameters "
        f"are: {', '.join(names[:8])}, …"
      )
    found |= hits
  return found


def check_patterns(patterns: Sequence[str], what: str):
  """Raises a UserError for what is no regular expression, called `what`."""
  for pattern in patterns:
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      raise UserError(
        f"got {what} {pattern!r}, expected a regular expression that is found "
        f"in names of parameters, such as 'llm/layers/' ({error})"
      ) from error
