"""Weights in: public checkpoints as a parameter tree, leaf by leaf.

Reads big_vision's `.npz` (layers stacked or one by one; float32, float16 or
bfloat16), separate SigLIP and Gemma `.npz`, and Hugging Face folders of
safetensors. The host holds one parameter at a time; each goes straight to where
its sharding says.

Shapes: n image tokens, D encoder width, E decoder width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Protocol

import jax
import numpy as np
import scipy.ndimage

from rt2_jax import huggingface, trees
from rt2_jax.huggingface import EMBEDDING, POSITIONS
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import init_params
from rt2_jax.weight_files import Npz, SafetensorsFolder, Shape

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


class _Weights(Protocol):
  """A model's parameters in files, under our names."""

  def read(self, name: str, dtype: np.dtype) -> np.ndarray:
    """One parameter, in the shape in which it is stored."""


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
    leaf = weights.read(name, np.dtype(dtype))
    if leaf.shape != shape:
      leaf = fit[name](leaf, shape)
    flat[name] = jax.make_array_from_callback(
      shape, placements[name], leaf.__getitem__
    )
    del leaf  # before the next one is read
  return trees.unflatten(flat)


def parameter_shapes(config: VLMConfig) -> dict[str, Shape]:
  """The name and shape of every parameter of a model."""
  tree = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  return {name: leaf.shape for name, leaf in trees.flatten(tree).items()}


def read_config(folder: Path) -> VLMConfig:
  """The model in a Hugging Face folder, as float32.

  Raises:
    ValueError: not a folder of PaliGemma.
  """
  return _described(SafetensorsFolder(pathlib.Path(folder)))


def _open(source, config: VLMConfig, seed: int) -> _Weights:
  if isinstance(source, Mapping):
    return _SiglipAndGemma(source, config, seed)
  path = pathlib.Path(source)
  if not path.exists():
    raise ValueError(
      f"got weights {str(path)!r}, which does not exist; pass an .npz file or "
      "a Hugging Face folder"
    )
  return _HuggingFace(path, config) if path.is_dir() else _Whole(path, config)


class _BigVision:
  """The arrays of a big_vision file under our names, layers stacked.

  Attributes:
    shapes: our name -> shape as stored.
  """

  def __init__(self, path: pathlib.Path):
    """Groups the layers.

    Raises:
      ValueError: a file that cannot be read, or a layer is missing.
    """
    self._file = Npz(path)
    self._layers: dict[str, dict[int | None, str]] = {}
    members = list(self._file.shapes)
    if any(member.startswith("params/") for member in members):
      # The rest is the optimizer's.
      members = [name for name in members if name.startswith("params/")]
    for member in members:
      name, layer = trees.split_layer(member.removeprefix("params/"))
      self._layers.setdefault(name, {})[layer] = member
    self.shapes = {name: self._shape(name) for name in self._layers}

  def read(self, name: str, dtype: np.dtype) -> np.ndarray:
    """One parameter, in the shape in which it is stored."""
    layers = self._layers[name]
    if None in layers:
      return self._file.read(layers[None]).astype(dtype, copy=False)
    leaf = np.empty(self.shapes[name], dtype)
    for i, member in layers.items():
      leaf[i] = self._file.read(member)
    return leaf

  def _shape(self, name: str) -> Shape:
    layers = self._layers[name]
    shapes = {self._file.shapes[member] for member in layers.values()}
    if set(layers) == {None}:
      return shapes.pop()
    if set(layers) != set(range(len(layers))) or len(shapes) > 1:
      raise ValueError(
        f"{self._file.path}: got layers {sorted(layers, key=str)} of {name!r} "
        f"with shapes {sorted(shapes)}, expected all layers from 0 in one shape"
      )
    return (len(layers), *shapes.pop())


class _Whole(_BigVision):
  """A big_vision file of a whole PaliGemma."""

  def __init__(self, path: pathlib.Path, config: VLMConfig):
    super().__init__(path)
    stored = _as_stored(str(path), self.shapes, config)
    _check_names(str(path), self.shapes, parameter_shapes(stored))


class _Tower(_BigVision):
  """A big_vision file of SigLIP or Gemma alone, under a whole model's names."""

  def __init__(self, path: pathlib.Path, part: str):
    super().__init__(path)
    if any(name.startswith(f"{part}/") for name in self.shapes):
      # The rest is the other tower of a contrastive model.
      self._rename(lambda name: name if name.startswith(f"{part}/") else "")
    else:
      self._rename(lambda name: f"{part}/{name}")
    self._rename(lambda name: "" if name.startswith(_POOLING) else name)
    rows, *width = self.shapes.get(EMBEDDING, (0,))
    if rows == _GEMMA_ROWS:
      self.shapes[EMBEDDING] = (_GEMMA_TOKENS, *width)

  def read(self, name: str, dtype: np.dtype) -> np.ndarray:
    return super().read(name, dtype)[: self.shapes[name][0]]

  def _rename(self, rename: Callable[[str], str]):
    """Drops the names that become empty."""
    for table in self._layers, self.shapes:
      renamed = {rename(name): value for name, value in table.items()}
      renamed.pop("", None)
      table.clear()
      table.update(renamed)


class _SiglipAndGemma:
  """Two big_vision files; the projection from one to the other is drawn."""

  def __init__(self, paths: Mapping[str, Path], config: VLMConfig, seed: int):
    if set(paths) != {"img", "llm"}:
      raise ValueError(
        f"got weights of {sorted(paths)}, expected the paths of 'img' and 'llm'"
      )
    self._towers = {p: _Tower(pathlib.Path(paths[p]), p) for p in paths}
    self._seed = seed
    found = {n: s for t in self._towers.values() for n, s in t.shapes.items()}
    origin = " and ".join(map(str, paths.values()))
    stored = _as_stored(origin, found, config)
    self._shapes = parameter_shapes(stored)
    drawn = {n: self._shapes[n] for n in _PROJECTION}
    _check_names(origin, found | drawn, self._shapes)

  def read(self, name: str, dtype: np.dtype) -> np.ndarray:
    """One parameter, in the shape in which it is stored."""
    if name not in _PROJECTION:
      return self._towers[name.split("/")[0]].read(name, dtype)
    shape = self._shapes[name]
    if len(shape) == 1:
      return np.zeros(shape, dtype)
    random = np.random.default_rng(self._seed)
    kernel = random.standard_normal(shape, np.float32) * shape[0] ** -0.5
    return kernel.astype(dtype)


class _HuggingFace:
  """A folder of PaliGemma 1 or 2."""

  def __init__(self, path: pathlib.Path, config: VLMConfig):
    self._folder = SafetensorsFolder(path)
    _check_config(self._folder, config)
    self._folder.open()
    self._stored_names = {
      huggingface.table_name(name): name for name in self._folder.shapes
    }
    shapes = {n: self._folder.shapes[s] for n, s in self._stored_names.items()}
    _check_tied(self._folder, shapes)
    self._rules = {rule.ours: rule for rule in huggingface.rules(config)}
    found = {
      ours: shapes[self._rules[ours].theirs[0]]
      for ours in (EMBEDDING, POSITIONS)
      if self._rules[ours].theirs[0] in shapes
    }
    ...


# Fitting what is stored to what is asked for.


def _as_stored(
  origin: str, found: Mapping[str, Shape], config: VLMConfig
) -> VLMConfig:
  """`config` with the image size and the vocabulary that a file has.

  Raises:
    ValueError: more rows than the model's vocabulary has.
  """
  img, llm = config.img, config.llm
  if POSITIONS in found:
    side = math.isqrt(found[POSITIONS][-2])
    img = dataclasses.replace(img, image_size=side * img.patch_size)
  if EMBEDDING in found:
    rows = found[EMBEDDING][0]
    if rows > llm.vocab_size:
      raise ValueError(
        f"{origin}: got a vocabulary of {rows} tokens, expected at most the "
        f"model's {llm.vocab_size}; use the tokenizer of these weights"
      )
    llm = dataclasses.replace(llm, vocab_size=rows)
  return dataclasses.replace(config, img=img, llm=llm)
