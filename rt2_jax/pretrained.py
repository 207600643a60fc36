"""Weights in: public checkpoints as a parameter tree, leaf by leaf.

Reads big_vision's `.npz` (layers stacked or one by one; float32, float16 or
bfloat16), separate SigLIP and Gemma `.npz`, and Hugging Face folders of
safetensors. The host holds one parameter at a time; each goes straight to where
its sharding says.

Shapes: n image tokens, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import scipy.ndimage

from rt2_jax import huggingface, trees
from rt2_jax.huggingface import EMBEDDING, POSITIONS
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import init_params
from rt2_jax.weight_files import (
  Shape,
  Stored,
  open_big_vision,
  open_safetensors,
)

Path = str | pathlib.Path

# What no file decides: these fields change no parameter, or one that is
# resampled or extended. big_vision trains PaliGemma 2 without final softcap.
_CALLERS = ("image_size", "vocab_size", "final_softcap", "dtype", "remat")
# A SigLIP file has a pooling head, which PaliGemma has no use for, and lacks
# the projection into the decoder.
_POOLING, _PROJECTION = "img/MAPHead_0/", ("img/head/kernel", "img/head/bias")
# Gemma's own token table ends in 128 rows that no token uses.
_GEMMA_ROWS, _GEMMA_TOKENS = 256_128, 256_000
_NEW_ROW_STD = 0.02  # as in big_vision
_GEMMA2_NORM = re.compile("post_ffw_norm|post_feedforward_layernorm")
_OUTPUT_LAYERS = ("lm_head.weight", "language_model.lm_head.weight")


def load(
  source: Path | Mapping[str, Path],
  config: VLMConfig,
  shardings: dict,
  dtype: str = "float32",
  seed: int = 0,
) -> dict:
  """Reads the parameters of a model.

  Position embeddings are resampled to `config.img.image_size`, and the token
  table gets new random rows up to `config.llm.vocab_size`; all else must be as
  `config` says.

  Args:
    source: an `.npz` file; a Hugging Face folder; or the `.npz` files of a
      SigLIP and a Gemma as {"img": path, "llm": path}, whose projection from
      one to the other is then drawn at random.
    config: the model to fill.
    shardings: one for each parameter, as a tree.
    dtype: of the parameters.
    seed: of what is drawn at random.

  Returns:
    The parameter tree, of jax.Array.

  Raises:
    ValueError: a file that cannot or must not be read, or the weights of
      another model; then every missing, extra and mis-shaped name is listed.
  """
  weights = _open(source, config, seed)
  fit = {
    POSITIONS: _resample,
    EMBEDDING: functools.partial(_add_rows, seed=seed),
  }
  flat, placements = {}, trees.flatten(shardings)
  for name, shape in parameter_shapes(config).items():
    leaf = weights[name].read().astype(dtype, copy=False)
    if leaf.shape != shape:
      leaf = fit[name](leaf, shape)
    flat[name] = jax.make_array_from_callback(
      shape, placements[name], leaf.__getitem__
    )
    del leaf  # before the next one is read
  return trees.unflatten(flat)


def read_config(folder: Path) -> VLMConfig:
  """The model in a Hugging Face folder.

  Raises:
    ValueError: it does not say that it is PaliGemma.
  """
  path = pathlib.Path(folder) / "config.json"
  if not path.is_file():
    raise ValueError(f"got no {path}, expected a Hugging Face folder")
  try:
    return huggingface.from_config(json.loads(path.read_text()))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: VLMConfig) -> Mapping[str, Shape]:
  """The name and shape of every parameter of a model."""
  tree = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  shapes = {name: leaf.shape for name, leaf in trees.flatten(tree).items()}
  return MappingProxyType(shapes)


def _open(
  source: Path | Mapping[str, Path], config: VLMConfig, seed: int
) -> dict[str, Stored]:
  """All parameters under our names, checked, in the shapes of the file."""
  if isinstance(source, Mapping):
    return _open_parts(source, config, seed)
  path = pathlib.Path(source)
  if not path.exists():
    raise ValueError(
      f"got weights {str(path)!r}, which does not exist; pass an .npz file or "
      "a Hugging Face folder"
    )
  if path.is_dir():
    return _open_folder(path, config)
  weights = open_big_vision(path)
  stored = _as_stored(path, weights, config)
  _check_names(path, weights, parameter_shapes(stored))
  return weights


def _open_parts(
  paths: Mapping[str, Path], config: VLMConfig, seed: int
) -> dict[str, Stored]:
  """SigLIP and Gemma from a file each; the projection between them is drawn."""
  if set(paths) != {"img", "llm"}:
    raise ValueError(
      f"got weights of {sorted(paths)}, expected the paths of 'img' and 'llm'"
    )
  weights = {}
  for part in "img", "llm":
    found = open_big_vision(pathlib.Path(paths[part]))
    if any(name.startswith(f"{part}/") for name in found):
      # The rest is the other tower of a contrastive model.
      found = {n: w for n, w in found.items() if n.startswith(f"{part}/")}
    else:
      found = {f"{part}/{n}": w for n, w in found.items()}
    weights |= found
  weights = {n: w for n, w in weights.items() if not n.startswith(_POOLING)}
  if EMBEDDING in weights and weights[EMBEDDING].shape[0] == _GEMMA_ROWS:
    weights[EMBEDDING] = _first_rows(weights[EMBEDDING], _GEMMA_TOKENS)
  origin = " and ".join(map(str, paths.values()))
  shapes = parameter_shapes(_as_stored(origin, weights, config))
  for name in _PROJECTION:
    weights[name] = _drawn(shapes[name], seed)
  _check_names(origin, weights, shapes)
  return weights


def _first_rows(table: Stored, rows: int) -> Stored:
  return Stored(
    (rows, *table.shape[1:]), table.dtype, lambda: table.read()[:rows]
  )


def _drawn(shape: Shape, seed: int) -> Stored:
  """As in a new model: a kernel that keeps the scale, or a bias of zero."""
  std = shape[0] ** -0.5 if len(shape) > 1 else 0.0

  def read() -> np.ndarray:
    return std * np.random.default_rng(seed).standard_normal(shape, np.float32)

  return Stored(shape, np.dtype(np.float32), read)


def _open_folder(folder: pathlib.Path, config: VLMConfig) -> dict[str, Stored]:
  """A folder of PaliGemma 1 or 2."""
  _check_config(folder, read_config(folder), config)
  tensors = {
    huggingface.table_name(name): tensor
    for name, tensor in open_safetensors(folder).items()
  }
  rules = {rule.ours: rule for rule in huggingface.rules(config)}
  (table,), (positions,) = rules[EMBEDDING].theirs, rules[POSITIONS].theirs
  _check_tied(folder, tensors, table)
  padded = huggingface.padded_rows(config.llm.vocab_size)
  if table in tensors and tensors[table].shape[0] == padded:
    tensors[table] = _first_rows(tensors[table], config.llm.vocab_size)
  sizes = {
    ours: tensors[theirs]
    for ours, theirs in ((EMBEDDING, table), (POSITIONS, positions))
    if theirs in tensors
  }
  shapes = parameter_shapes(_as_stored(folder, sizes, config))
  expected = {}
  for name, shape in shapes.items():
    expected |= rules[name].shapes(shape)
  _check_names(folder, tensors, expected)
  return {
    name: _joined(rules[name], tensors, shape) for name, shape in shapes.items()
  }


def _joined(
  rule: huggingface.Rule, tensors: Mapping[str, Stored], shape: Shape
) -> Stored:
  dtype = tensors[next(iter(rule.shapes(shape)))].dtype
  return Stored(
    shape, dtype, lambda: rule.join(lambda n: tensors[n].read(), shape, dtype)
  )


# Checking, and fitting what is stored to what is asked for.


def _check_config(origin: Path, found: VLMConfig, asked: VLMConfig):
  """Raises a ValueError that lists the fields in which two models differ."""
  differences = [
    f"{name} is {value!r}, asked for {wanted!r}"
    for (name, value), wanted in zip(
      _decided(found).items(), _decided(asked).values(), strict=True
    )
    if value != wanted
  ]
  if differences:
    raise ValueError(
      f"{origin}: got the weights of another model: {'; '.join(differences)}"
      f"{_generations(found.llm.post_norms, asked.llm.post_norms)}"
    )


def _decided(config: VLMConfig) -> dict[str, Any]:
  """The fields that a file decides, with defaults resolved."""
  llm = dataclasses.replace(config.llm, query_scale=config.llm.query_factor)
  parts = {"img": config.img, "llm": llm}
  return {
    f"{part}.{field}": value
    for part, fields in parts.items()
    for field, value in dataclasses.asdict(fields).items()
    if field not in _CALLERS
  }


def _generations(found_gemma2: bool, asked_gemma2: bool) -> str:
  """The end of an error message, when that is the reason."""
  if found_gemma2 == asked_gemma2:
    return ""
  found, asked = 1 + found_gemma2, 1 + asked_gemma2
  return f"; these are Gemma {found} weights, the model is a Gemma {asked}"


def _check_names(
  origin: Path, found: Mapping[str, Stored], expected: Mapping[str, Shape]
):
  """Raises a ValueError that lists all that is missing, extra or mis-shaped."""
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
  gemma2 = (any(map(_GEMMA2_NORM.search, names)) for names in (found, expected))
  raise ValueError(
    f"{origin}: got the weights of another model: {listed}"
    f"{_generations(*gemma2)}"
  )


def _check_tied(folder: Path, tensors: dict[str, Stored], table: str):
  """Removes the output layer, which is the token table and nothing else.

  Raises:
    ValueError: it is not.
  """
  for name in _OUTPUT_LAYERS:
    output = tensors.pop(name, None)
    if output is None or table not in tensors:
      continue
    if not np.array_equal(output.read(), tensors[table].read()):
      raise ValueError(
        f"{folder}: got an output layer {name!r} that differs from the token "
        f"table {table!r}, expected the same array: our decoder ties them"
      )


def _as_stored(
  origin: Path, weights: Mapping[str, Stored], config: VLMConfig
) -> VLMConfig:
  """`config` with the image size and the vocabulary of a file.

  Raises:
    ValueError: more rows than the model's vocabulary has.
  """
  img, llm = config.img, config.llm
  if POSITIONS in weights:
    side = math.isqrt(weights[POSITIONS].shape[-2])
    img = dataclasses.replace(img, image_size=side * img.patch_size)
  if EMBEDDING in weights:
    rows = weights[EMBEDDING].shape[0]
    if rows > llm.vocab_size:
      raise ValueError(
        f"{origin}: got a vocabulary of {rows} tokens, expected at most the "
        f"model's {llm.vocab_size}; use the tokenizer of these weights"
      )
    llm = dataclasses.replace(llm, vocab_size=rows)
  return dataclasses.replace(config, img=img, llm=llm)


def _resample(leaf: np.ndarray, shape: Shape) -> np.ndarray:
  """Positions dtype[1, n, D] for another image size, linearly (big_vision)."""
  old, new = math.isqrt(leaf.shape[1]), math.isqrt(shape[1])
  grid = leaf.reshape(old, old, -1).astype(np.float32)
  grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
  return grid.reshape(shape).astype(leaf.dtype)


def _add_rows(leaf: np.ndarray, shape: Shape, seed: int) -> np.ndarray:
  """The token table dtype[V, D] with new random rows at its end."""
  rows = len(leaf)
  random = np.random.default_rng(seed)
  new = random.standard_normal((shape[0] - rows, shape[1]), np.float32)
  table = np.empty(shape, leaf.dtype)
  table[:rows], table[rows:] = leaf, new * _NEW_ROW_STD
  return table
