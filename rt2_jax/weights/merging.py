"""Merges adapters into their matrices: `w + alpha / rank * a b`, in float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rt2_jax import parameters, trees
from rt2_jax.models import lora
from rt2_jax.models.variants import VLMConfig


def merge(params: Any, config: VLMConfig) -> dict:
  """Returns the parameters of a model without adapters that computes the same.

  Args:
    params: with adapters, of any type.
    config: the model with adapters.

  Returns:
    float32 arrays of numpy.
  """
  flat = trees.flatten(params)
  merged = {}
  for name in flat.keys() - lora.adapters(flat):
    w = np.asarray(flat[name], np.float32)
    a, b = (flat.get(f"{name}{lora.SUFFIX}/{ab}") for ab in "ab")
    if a is not None:
      part = config.img if name.startswith("img/") else config.llm
      w = w + np.float32(part.lora.scale) * _product(name, a, b, w.ndim)
    merged[name] = w
  return trees.unflatten(
    {name: merged[name] for name in flat if name in merged}
  )


def _product(name: str, a: Any, b: Any, ndim: int) -> np.ndarray:
  """Multiplies `a` by `b`, and orders the axes as the matrices `name`."""
  axes = parameters.row(name).matrix
  a, b = (np.asarray(x, np.float32) for x in (a, b))
  inputs = a.shape[-1 - len(axes.inputs) : -1]
  outputs = b.shape[b.ndim - len(axes.outputs) :]
  count = a.shape[: a.ndim - 1 - len(inputs)]
  rank = a.shape[-1]
  product = np.matmul(
    a.reshape(*count, math.prod(inputs), rank),
    b.reshape(*count, rank, math.prod(outputs)),
  ).reshape(*count, *inputs, *outputs)
  where = axes.inputs + axes.outputs
  assert product.ndim == ndim, (name, product.shape)
  return np.moveaxis(product, range(-len(where), 0), where)
