"""Adafactor (arXiv:1804.04235) with T5's constants, matrix by matrix.

The second moment of a matrix is kept as the means of its rows and columns, so
that the state is about a thousandth of the parameters. Updates are those of
`transformers.Adafactor(scale_parameter=True)` for one parameter per matrix:
no momentum, clipped to an RMS of 1, relative to the RMS of the matrix itself.

Shapes: [*batch, *inputs, *outputs] in the order of `parameters.Axes`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rt2_jax import parameters, trees

_DECAY_EXPONENT = 0.8
_EPSILON = 1e-30  # added to squared gradients
_LARGEST_RMS = 1.0  # of an update before it is made relative
_SMALLEST_SCALE = 1e-3  # of a parameter, so that zeros can grow


_KINDS = ("v_row", "v_col", "v")


class AdafactorState(NamedTuple):
  """Second moments; a parameter is in `v`, or in `v_row` and `v_col`.

  Attributes:
    count: int32[], updates done.
    v_row: means over the outputs, of every matrix.
    v_col: means over the inputs, of every matrix.
    v: whole, of every vector.
  """

  count: jax.Array
  v_row: Any
  v_col: Any
  v: Any


def scale_by_adafactor() -> optax.GradientTransformation:
  """Scales gradients to updates relative to each matrix's or vector's RMS."""
  return optax.GradientTransformation(_init, _update)


def _init(params: Any) -> AdafactorState:
  moments = _by_name(params, lambda name, p: _moments(name, jnp.zeros_like(p)))
  return _state(jnp.zeros((), jnp.int32), moments)


def _update(
  grads: Any, state: AdafactorState, params: Any
) -> tuple[Any, AdafactorState]:
  before = {kind: trees.flatten(getattr(state, kind)) for kind in _KINDS}
  count = optax.safe_increment(state.count)
  decay = 1.0 - count.astype(jnp.float32) ** -_DECAY_EXPONENT

  def moved(name, grad):
    squares = _moments(name, jnp.square(grad) + _EPSILON)
    return {
      kind: decay * before[kind][name] + (1.0 - decay) * new
      for kind, new in squares.items()
    }

  moments = _by_name(grads, moved)
  flat = trees.flatten(params)
  updates = _by_name(
    grads, lambda name, g: _relative(name, g, moments[name], flat[name])
  )
  return trees.unflatten(updates), _state(count, moments)


def _moments(name: str, squares: jax.Array) -> dict[str, jax.Array]:
  """Means of rows and columns of a matrix; a vector as it is."""
  axes = parameters.row(name).matrix
  if axes is None:
    return {"v": squares}
  return {
    "v_row": squares.mean(axes.outputs),
    "v_col": squares.mean(axes.inputs),
  }


def _relative(
  name: str, grad: jax.Array, moments: dict[str, jax.Array], param: jax.Array
) -> jax.Array:
  """The update of a parameter, in units of the learning rate."""
  axes = parameters.row(name).matrix
  if axes is None:
    update = grad * jax.lax.rsqrt(moments["v"])
  else:
    rows = jnp.expand_dims(moments["v_row"], axes.outputs)
    columns = jnp.expand_dims(moments["v_col"], axes.inputs)
    rows = rows / rows.mean(axes.inputs, keepdims=True)
    update = grad * jax.lax.rsqrt(rows) * jax.lax.rsqrt(columns)
  block = _block(name, grad.ndim)
  update /= jnp.maximum(_rms(update, block) / _LARGEST_RMS, 1.0)
  return update * jnp.maximum(_rms(param, block), _SMALLEST_SCALE)


def _block(name: str, ndim: int) -> tuple[int, ...]:
  """The axes of one matrix or vector: all that do not count them."""
  axes = parameters.row(name).matrix
  if axes is not None:
    return axes.inputs + axes.outputs
  first = 1 if trees.is_stacked(name) else 0
  return tuple(range(first - ndim, 0))


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))


def _by_name(tree: Any, function: Any) -> dict[str, Any]:
  return {name: function(name, x) for name, x in trees.flatten(tree).items()}


def _state(count: jax.Array, moments: dict[str, dict]) -> AdafactorState:
  def kept(kind):
    return trees.unflatten(
      {name: m[kind] for name, m in moments.items() if kind in m}
    )

  return AdafactorState(count, kept("v_row"), kept("v_col"), kept("v"))
