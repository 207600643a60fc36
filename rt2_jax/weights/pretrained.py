"""Loads public checkpoints into a parameter tree, leaf by leaf.

Reads big_vision's `.npz` (layers stacked or one by one; float32, float16 or
bfloat16) and Hugging Face folders of safetensors, of PaliGemma or of SigLIP and
Gemma. The host holds one parameter at a time; each goes straight to where
its sharding says.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from rt2_jax import shipped, storage, trees
from rt2_jax.errors import UserError
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import abstract_params
from rt2_jax.weights import fitting, hf_config, hf_names
from rt2_jax.weights.checks import (
  check_config,
  check_finite,
  check_floats,
  check_names,
  check_padding,
  check_tied,
)
from rt2_jax.weights.files import (
  open_big_vision,
  open_safetensors,
  read_json,
  widest,
)
from rt2_jax.weights.hf_names import EMBEDDING, POSITIONS
from rt2_jax.weights.stored_arrays import Path, Shape, Stored

# A SigLIP file has a pooling head, which PaliGemma has no use for, and lacks
# the projection into the decoder.
_POOLING, _PROJECTION = "img/MAPHead_0/", ("img/head/kernel", "img/head/bias")
# Gemma's own token table ends in 128 rows that no token uses.
_GEMMA_ROWS, _GEMMA_TOKENS = 256_128, 256_000


def load(
  source: Path | Mapping[str, Path],
  config: VLMConfig,
  shardings: dict,
  dtype: str | dict = "float32",
  seed: int = 0,
) -> dict:
  """Reads the parameters of a model.

  Position embeddings are resampled to `config.img.image_size`, and the token
  table gets new random rows up to `config.llm.vocab_size`; all else must be as
  `config` says.

  Args:
    source: an `.npz` file or a Hugging Face folder; or those of a SigLIP and a
      Gemma as {"img": path, "llm": path}, whose projection from one to the
      other is then drawn at random.
    config: the model to fill.
    shardings: one for each parameter, as a tree.
    dtype: of the parameters; or one for each, as a tree.
    seed: of what is drawn at random.

  Returns:
    The parameter tree, of jax.Array.

  Raises:
    UserError: a file that cannot or must not be read, numbers that are not
      finite, or the weights of another model; then every missing, extra and
      mis-shaped name is listed.
  """
  weights = _open(source, config, seed)
  fit = {
    POSITIONS: fitting.resample,
    EMBEDDING: functools.partial(fitting.add_rows, seed=seed),
  }
  flat, placements = {}, trees.flatten(shardings)
  shapes = parameter_shapes(config)
  one_dtype = isinstance(dtype, str)
  dtypes = dict.fromkeys(shapes, dtype) if one_dtype else trees.flatten(dtype)
  # The largest first: its second copy is gone before the host fills up.
  for name in sorted(shapes, key=lambda name: -math.prod(shapes[name])):
    shape = shapes[name]
    leaf = weights[name].read().astype(dtypes[name], copy=False)
    check_finite(_name(source), name, leaf)
    if leaf.shape != shape:
      leaf = fit[name](leaf, shape)
    flat[name] = jax.make_array_from_callback(
      shape, placements[name], leaf.__getitem__
    )
    del leaf  # before the next one is read
  return trees.unflatten({name: flat[name] for name in shapes})


def _name(source: Path | Mapping[str, Path]) -> str:
  """Names the source in error messages."""
  if isinstance(source, Mapping):
    return " and ".join(map(str, source.values()))
  return str(source)


def read_config(folder: Path, image_positions: int = 0) -> VLMConfig:
  """Reads the model's config in a Hugging Face folder.

  Args:
    folder: of PaliGemma.
    image_positions: see `hf_config.from_config`.

  Raises:
    UserError: it is not PaliGemma, or not as our model assumes.
  """
  read = functools.partial(
    hf_config.from_config, image_positions=image_positions
  )
  return _read_config(folder, read)


def _read_config(folder: Path, read: Callable[[Mapping[str, Any]], Any]) -> Any:
  path = storage.locate(folder, "the folder of weights") / "config.json"
  if not path.is_file():
    raise UserError(f"got no {path}, expected a Hugging Face folder")
  fields = read_json(path)
  try:
    return read(fields)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error


def read_dtype(folder: Path) -> str:
  """Reads the type of the tensors in a Hugging Face folder.

  Raises:
    UserError: there is more than one.
  """
  tensors = open_safetensors(storage.locate(folder, "the folder of weights"))
  types = sorted({str(tensor.dtype) for tensor in tensors.values()})
  if len(types) > 1:
    raise UserError(
      f"got {folder} with tensors of the types {', '.join(types)}, expected "
      "one; save it in one type"
    )
  return types[0]


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: VLMConfig) -> Mapping[str, Shape]:
  """Returns the name and shape of every parameter of a model."""
  flat = trees.flatten(abstract_params(config))
  shapes = {name: leaf.shape for name, leaf in flat.items()}
  return MappingProxyType(shapes)


def _open(
  source: Path | Mapping[str, Path], config: VLMConfig, seed: int
) -> dict[str, Stored]:
  """Opens all parameters under our names, checked, in the file's shapes."""
  if isinstance(source, Mapping):
    weights = _open_parts(source, config, seed)
  else:
    path = _existing(source)
    open_whole = _open_folder if path.is_dir() else _open_file
    weights = open_whole(path, config)
  check_floats(_name(source), weights)
  return weights


def _open_file(path: storage.Path, config: VLMConfig) -> dict[str, Stored]:
  """Opens an `.npz` of PaliGemma 1 or 2."""
  weights = open_big_vision(path)
  stored = fitting.as_stored(path, weights, config)
  check_names(path, weights, parameter_shapes(stored))
  return weights


def _existing(source: Path) -> storage.Path:
  path = storage.locate(shipped.find(source), "config.pretrained")
  if not path.exists():
    raise UserError(
      f"got weights {str(path)!r}, which does not exist; pass an .npz file or "
      "a Hugging Face folder"
    )
  return path


def _open_parts(
  paths: Mapping[str, Path], config: VLMConfig, seed: int
) -> dict[str, Stored]:
  """Opens a SigLIP and a Gemma; the projection between them is random."""
  if set(paths) != {"img", "llm"}:
    raise UserError(
      f"got weights of {sorted(paths)}, expected the paths of 'img' and 'llm'"
    )
  weights = {}
  for part in "img", "llm":
    path = _existing(paths[part])
    open_part = _open_part_folder if path.is_dir() else _open_part_file
    weights |= open_part(path, part, config)
  origin = _name(paths)
  shapes = parameter_shapes(fitting.as_stored(origin, weights, config))
  for name in _PROJECTION:
    weights[name] = fitting.drawn(shapes[name], seed)
  check_names(origin, weights, shapes)
  return weights


def _open_part_file(
  path: storage.Path, part: str, config: VLMConfig
) -> dict[str, Stored]:
  """Opens an `.npz` of SigLIP or Gemma, without checking names."""
  del config
  found = open_big_vision(path)
  if any(name.startswith(f"{part}/") for name in found):
    # The rest is the other tower of a contrastive model.
    found = {n: w for n, w in found.items() if n.startswith(f"{part}/")}
  else:
    found = {f"{part}/{n}": w for n, w in found.items()}
  found = {n: w for n, w in found.items() if not n.startswith(_POOLING)}
  if EMBEDDING in found:
    found[EMBEDDING] = _without_idle_rows(found[EMBEDDING])
  return found


def _without_idle_rows(table: Stored) -> Stored:
  """Cuts the rows that no token uses off Gemma's own table."""
  idle = table.shape[0] == _GEMMA_ROWS
  return fitting.first_rows(table, _GEMMA_TOKENS) if idle else table


def _open_part_folder(
  folder: storage.Path, part: str, config: VLMConfig
) -> dict[str, Stored]:
  """Opens a Hugging Face folder of SigLIP (text tower or not), or of Gemma."""
  read = functools.partial(
    hf_config.from_part_config,
    part,
    image_positions=config.num_image_tokens,
  )
  found = dataclasses.replace(config, **{part: _read_config(folder, read)})
  check_config(folder, found, config)
  tensors = {
    hf_names.part_table_name(part, name): tensor
    for name, tensor in open_safetensors(folder).items()
  }
  tensors.pop(None, None)
  names = [n for n in parameter_shapes(config) if n.startswith(f"{part}/")]
  names = [name for name in names if name not in _PROJECTION]
  return _our_names(folder, tensors, config, names, _without_idle_rows)


def _open_folder(folder: storage.Path, config: VLMConfig) -> dict[str, Stored]:
  """Opens a Hugging Face folder of PaliGemma 1 or 2."""
  found = read_config(folder, config.num_image_tokens)
  check_config(folder, found, config)
  tensors = {
    hf_names.table_name(name): tensor
    for name, tensor in open_safetensors(folder).items()
  }
  tokens = found.llm.vocab_size

  def unpadded(table: Stored) -> Stored:
    if table.shape[0] <= tokens:
      return table
    check_padding(folder, tokens, table.shape[0])
    return fitting.first_rows(table, tokens)

  return _our_names(folder, tensors, config, parameter_shapes(config), unpadded)


def _our_names(
  folder: storage.Path,
  tensors: dict[str, Stored],
  config: VLMConfig,
  names: Iterable[str],
  unpadded: Callable[[Stored], Stored],
) -> dict[str, Stored]:
  """Joins tensors, by the table's names, into the parameters `names`.

  `unpadded` takes the rows off the token table that stand for no token.
  """
  rules = {rule.ours: rule for rule in hf_names.rules(config)}
  (table,), (positions,) = rules[EMBEDDING].theirs, rules[POSITIONS].theirs
  check_tied(folder, tensors, table)
  if table in tensors:
    tensors[table] = unpadded(tensors[table])
  sizes = {
    ours: tensors[theirs]
    for ours, theirs in ((EMBEDDING, table), (POSITIONS, positions))
    if theirs in tensors
  }
  shapes = parameter_shapes(fitting.as_stored(folder, sizes, config))
  shapes = {name: shapes[name] for name in names}
  expected = {}
  for name, shape in shapes.items():
    expected |= rules[name].shapes(shape)
  check_names(folder, tensors, expected)
  return {
    name: _joined(rules[name], tensors, shape) for name, shape in shapes.items()
  }


def _joined(
  rule: hf_names.Rule, tensors: Mapping[str, Stored], shape: Shape
) -> Stored:
  dtype = widest(tensors[name].dtype for name in rule.shapes(shape))
  return Stored(
    shape, dtype, lambda: rule.join(lambda n: tensors[n].read(), shape, dtype)
  )
