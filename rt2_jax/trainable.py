"""Which parameters train, and in what types all of them are stored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rt2_jax import parameters, trees
from rt2_jax.errors import UserError
from rt2_jax.models import lora


def split(
  params: Any, trained: Sequence[str], frozen: Sequence[str]
) -> tuple[dict, dict]:
  """Splits parameters into (frozen, trained).

  Args:
    params: all parameters.
    trained: patterns of the names of parameters that train.
    frozen: patterns of the names of parameters that do not.

  Raises:
    UserError: a pattern that no name holds; nothing is left to train; or the
      whole base trains beside its adapters.
  """
  leaves = trees.flatten(params)
  names = trees.matching(leaves, trained, "config.optimizer.trained")
  names -= trees.matching(leaves, frozen, "config.optimizer.frozen")
  got = f"got config.optimizer.trained = {trained} and frozen = {frozen}"
  _check(names, leaves.keys(), got)
  return (
    trees.unflatten({n: x for n, x in leaves.items() if n not in names}),
    trees.unflatten({n: x for n, x in leaves.items() if n in names}),
  )


def _check(trained: Collection[str], names: Collection[str], got: str):
  adapters = lora.adapters(names)
  if not adapters and not trained:
    raise UserError(f"{got}, which let no parameter train; change one of them")
  if not adapters:
    return
  if not adapters <= trained:
    raise UserError(
      f"{got}, which let {len(adapters & trained)} of {len(adapters)} adapter "
      f"arrays train, expected all: trained = ('{lora.SUFFIX}/',)"
    )
  if trained == set(names):
    raise UserError(
      f"{got}, which let the whole base train beside its adapters, expected a "
      f"frozen base: trained = ('{lora.SUFFIX}/',)"
    )


def stored(params: dict, dtype: str) -> dict:
  """Casts all but what `parameters.PARAMETERS` keeps in float32."""

  def cast(name, x):
    return x if parameters.row(name).float32 else x.astype(dtype)

  flat = trees.flatten(params).items()
  return trees.unflatten({name: cast(name, x) for name, x in flat})


def float32(tree: Any) -> Any:
  """Casts what is bfloat16; what is not, such as a count, stays."""
  return jax.tree.map(
    lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree
  )


def filled(params: Any, others: Any) -> dict:
  """Adds to `params` the leaves of `others` that they lack."""
  return trees.unflatten(trees.flatten(others) | trees.flatten(params))
