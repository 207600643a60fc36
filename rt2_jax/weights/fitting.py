"""Fits stored weights to a model of another image size or vocabulary.

Shapes: n image tokens, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import scipy.ndimage

from rt2_jax.errors import UserError
from rt2_jax.models.variants import VLMConfig
from rt2_jax.weights.hf_names import EMBEDDING, POSITIONS
from rt2_jax.weights.stored_arrays import Path, Shape, Stored

_NEW_ROW_STD = 0.02  # as in big_vision


def as_stored(
  origin: Path, weights: Mapping[str, Stored], config: VLMConfig
) -> VLMConfig:
  """Returns `config` with the image size and the vocabulary of a file.

  Raises:
    UserError: more rows than the model's vocabulary has.
  """
  img, llm = config.img, config.llm
  if POSITIONS in weights:
    side = math.isqrt(weights[POSITIONS].shape[-2])
    img = dataclasses.replace(img, image_size=side * img.patch_size)
  if EMBEDDING in weights:
    rows = weights[EMBEDDING].shape[0]
    if rows > llm.vocab_size:
      raise UserError(
        f"{origin}: got a vocabulary of {rows} tokens, expected at most the "
        f"model's {llm.vocab_size}; use the tokenizer of these weights"
      )
    llm = dataclasses.replace(llm, vocab_size=rows)
  return dataclasses.replace(config, img=img, llm=llm)


def resample(leaf: np.ndarray, shape: Shape) -> np.ndarray:
  """Interpolates position embeddings dtype[1, n, D] linearly (big_vision)."""
  old, new = math.isqrt(leaf.shape[1]), math.isqrt(shape[1])
  grid = leaf.reshape(old, old, -1).astype(np.float32)
  grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
  return grid.reshape(shape).astype(leaf.dtype)


def add_rows(leaf: np.ndarray, shape: Shape, seed: int) -> np.ndarray:
  """Appends random rows to the token table dtype[V, D]."""
  rows = len(leaf)
  random = np.random.default_rng(seed)
  new = random.standard_normal((shape[0] - rows, shape[1]), np.float32)
  table = np.empty(shape, leaf.dtype)
  table[:rows], table[rows:] = leaf, new * _NEW_ROW_STD
  return table


def first_rows(table: Stored, rows: int) -> Stored:
  """Cuts off the token table's last rows, which stand for no token."""
  return Stored(
    (rows, *table.shape[1:]), table.dtype, lambda: table.read()[:rows]
  )


def drawn(shape: Shape, seed: int) -> Stored:
  """Draws a kernel that keeps the scale, or a bias of zero, as a new model."""
  std = shape[0] ** -0.5 if len(shape) > 1 else 0.0

  def read() -> np.ndarray:
    return std * np.random.default_rng(seed).standard_normal(shape, np.float32)

  return Stored(shape, np.dtype(np.float32), read)
