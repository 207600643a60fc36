"""Refuses the weights of another model, with all differences in one error."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rt2_jax import storage
from rt2_jax.errors import UserError
from rt2_jax.models.variants import FAMILIES, VLMConfig
from rt2_jax.weights.files import read_json
from rt2_jax.weights.stored_arrays import Path, Shape, Stored

# Fields that a file cannot contradict: they change no parameter, or one that is
# resampled or extended. big_vision trains PaliGemma 2 without final softcap.
_CALLER_CHOSEN = ("image_size", "vocab_size", "final_softcap", "dtype", "remat")
_GEMMA2_NORM = re.compile("post_ffw_norm|post_feedforward_layernorm")
_OUTPUT_LAYERS = ("lm_head.weight", "language_model.lm_head.weight")


def check_config(origin: Path, found: VLMConfig, asked: VLMConfig):
  """Raises a UserError that lists the fields in which two models differ."""
  differences = [
    f"{name} is {value!r}, asked for {wanted!r}"
    for (name, value), wanted in zip(
      _decided(found).items(), _decided(asked).values(), strict=True
    )
    if value != wanted
  ]
  if differences:
    raise UserError(
      f"{origin}: got the weights of another model: {'; '.join(differences)}"
      f"{_families(found.llm.family, asked.llm.family)}"
    )


def _decided(config: VLMConfig) -> dict[str, Any]:
  """Returns the fields that a file decides, with defaults resolved."""
  llm = dataclasses.replace(config.llm, query_scale=config.llm.query_factor)
  parts = {"img": config.img, "llm": llm}
  return {
    f"{part}.{field}": value
    for part, fields in parts.items()
    for field, value in dataclasses.asdict(fields).items()
    if field not in _CALLER_CHOSEN
  }


def _families(found: str, asked: str) -> str:
  """Ends an error message with the families, where they differ."""
  if found == asked:
    return ""
  found, asked = FAMILIES[found], FAMILIES[asked]
  return f"; these are {found} weights, the model is a {asked}"


def check_names(
  origin: Path, found: Mapping[str, Stored], expected: Mapping[str, Shape]
):
  """Raises a UserError that lists all that is missing, extra or mis-shaped."""
  problems = {
    "missing": [name for name in expected if name not in found],
    "extra": [name for name in found if name not in expected],
    "mis-shaped": [
      f"{name} {list(found[name].shape)} instead of {list(shape)}"
      for name, shape in expected.items()
      if name in found and found[name].shape != shape
    ],
  }
  if not any(problems.values()):
    return
  listed = "; ".join(
    f"{len(names)} {what}: {', '.join(names)}"
    for what, names in problems.items()
    if names
  )
  families = map(_family_of, (found, expected))
  raise UserError(
    f"{origin}: got the weights of another model: {listed}"
    f"{_families(*families)}"
  )


def _family_of(names: Iterable[str]) -> str:
  """Infers the family from parameter names, for files that do not say it."""
  return "gemma2" if any(map(_GEMMA2_NORM.search, names)) else "gemma"


def check_floats(origin: Path, weights: Mapping[str, Stored]):
  """Raises a UserError that lists the arrays that are not of floats."""
  others = [
    f"{name} of {array.dtype}"
    for name, array in weights.items()
    if not jnp.issubdtype(array.dtype, jnp.floating)
  ]
  if others:
    raise UserError(
      f"{origin}: got {', '.join(others)}, expected floating-point numbers; "
      "use weights that are not quantised"
    )


def check_finite(origin: Path, name: str, array: np.ndarray):
  """Raises a UserError for an array that holds NaN or infinity."""
  bad = array[~np.isfinite(array)]
  if bad.size:
    raise UserError(
      f"{origin}: got {float(bad.flat[0])} in {name!r} ({bad.size:,} of "
      f"{array.size:,} numbers are not finite), expected finite weights; use "
      "an earlier checkpoint, or copy the file again"
    )


def check_all_finite(origin: Path, flat: Mapping[str, Any]):
  """Raises a UserError for a parameter, by its name, as `check_finite`."""
  for name, leaf in flat.items():
    check_finite(origin, name, np.asarray(leaf))


def check_padding(folder: storage.Path, tokens: int, rows: int):
  """Raises a UserError if more than `<image>` uses a token table's last rows.

  Args:
    folder: of Hugging Face, with or without a tokenizer.
    tokens: rows that are kept; `<image>` has the next one.
    rows: of the table.
  """
  lost = {word: i for word, i in _added_tokens(folder) if tokens < i < rows}
  if lost:
    raise UserError(
      f"{folder}: got the added tokens {lost} behind id {tokens} of <image>, "
      "expected none: our vocabulary ends before it; use weights without them"
    )


def _added_tokens(folder: storage.Path) -> Iterator[tuple[str, int]]:
  """Yields the tokens that users added to a tokenizer, with their ids."""
  file = folder / "tokenizer.json"
  if file.is_file():
    for token in read_json(file).get("added_tokens", ()):
      yield token["content"], token["id"]
  file = folder / "added_tokens.json"
  if file.is_file():
    yield from read_json(file).items()
  file = folder / "tokenizer_config.json"
  if file.is_file():
    decoder = read_json(file).get("added_tokens_decoder") or {}
    for i, token in decoder.items():
      yield token["content"], int(i)


def check_tied(folder: Path, tensors: dict[str, Stored], table: str):
  """Removes the output layer, which is the token table and nothing else.

  That is compared when the table is read, so that neither is read twice: then
  a UserError tells of another one.
  """
  for name in _OUTPUT_LAYERS:
    output = tensors.pop(name, None)
    if output is not None and table in tensors:
      read = functools.partial(
        _read_tied, *(folder, name, output, table, tensors[table])
      )
      tensors[table] = tensors[table]._replace(read=read)


def _read_tied(
  folder: Path, name: str, output: Stored, table: str, stored: Stored
) -> np.ndarray:
  """Reads the token table; raises UserError if the output layer differs."""
  array = stored.read()
  if not np.array_equal(output.read(), array):
    raise UserError(
      f"{folder}: got an output layer {name!r} that differs from the token "
      f"table {table!r}, expected the same array: our decoder ties them"
    )
  return array
