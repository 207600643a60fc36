"""JSON values: their differences, named by their place, and their hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any


def to_json(value: Any) -> Any:
  """Returns the value as it reads back from a file: tuples become lists."""
  return json.loads(json.dumps(value))


def json_hash(value: Any) -> str:
  """Hashes a JSON value, sha256 in hex digits; the order of keys is free."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differing(
  old: Any, new: Any, name: str, free: Collection[str] = ()
) -> Iterator[str]:
  """Names each place where two JSON values differ: `a.b is 1, was 2`.

  Args:
    old: what was stored.
    new: what is asked for.
    name: of the two values.
    free: keys that may differ, wherever they stand.
  """
  for place, before, now in places(old, new, name, free):
    yield f"{place} is {now!r:.80}, was {before!r:.80}"


def places(
  old: Any, new: Any, name: str, free: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (place, old, new) wherever two JSON values differ."""
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted((old.keys() | new.keys()) - set(free)):
      yield from places(old.get(key), new.get(key), f"{name}.{key}", free)
  elif old != new:
    yield name, old, new
