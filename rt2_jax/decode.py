"""Answering: prefill, then token by token, in one compiled call.

On a robot's question only tokens that the action grammar allows compete, and
their logits alone are computed: a malformed action cannot be decoded (paper,
section 3.2, "Output constraint"). Other questions have the whole vocabulary.

Shapes: B examples, F frames, R x R encoder pixels, P prefix columns, L tokens
of an action, K candidate tokens, Q grammar states.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rt2_jax.action_tokens import Grammar
from rt2_jax.models.vlm import VLM


def decode_actions(
  model: VLM,
  params: dict,
  images: jax.Array,
  prefix: jax.Array,
  mask_input: jax.Array,
  grammar: Grammar,
) -> jax.Array:
  """The most likely action tokens, greedily.

  Args:
    model: whose `prefill`, `extend` and `logits_of` are used.
    params: its parameters.
    images: float32[B, F, R, R, 3] in [-1, 1].
    prefix: int32[B, P], padded on the left.
    mask_input: bool[B, P].
    grammar: which token may follow which.

  Returns:
    int32[B, L], for `ActionTokenizer.decode`.
  """
  variables = {"params": params}
  ids = jnp.asarray(grammar.ids)
  allowed = jnp.asarray(grammar.allowed)
  next_state = jnp.asarray(grammar.next_state)

  def choose(hidden, place):
    """Hidden state dtype[B, D] and grammar state int32[B] to a token each."""
    logits = model.apply(variables, hidden, ids, method="logits_of")
    best = jnp.argmax(jnp.where(allowed[place], logits, -jnp.inf), -1)
    return ids[best], next_state[place, best]

  def step(carry, _):
    token, place, state = carry
    hidden, state = model.apply(
      variables, token[:, None], state, method="extend"
    )
    token, place = choose(hidden[:, 0], place)
    return (token, place, state), token

  hidden, state = model.apply(
    variables,
    images,
    prefix,
    mask_input,
    answer_len=grammar.length - 1,
    method="prefill",
  )
  start = jnp.zeros(prefix.shape[0], jnp.int32)
  token, place = choose(hidden, start)
  _, rest = jax.lax.scan(step, (token, place, state), length=grammar.length - 1)
  return jnp.concatenate([token[:, None], rest.T], axis=1)


def decode_text(
  model: VLM,
  params: dict,
  images: jax.Array,
  prefix: jax.Array,
  mask_input: jax.Array,
  length: int,
  eos: int,
) -> jax.Array:
  """The most likely free text, greedily, over the whole vocabulary.

  Stops when every example has ended.

  Args:
    model: whose `prefill`, `extend` and `logits` are used.
    params: its parameters.
    images: float32[B, F, R, R, 3] in [-1, 1].
    prefix: int32[B, P], padded on the left.
    mask_input: bool[B, P].
    length: L, tokens at most.
    eos: the token that ends a text; it also fills what follows.

  Returns:
    int32[B, L].
  """
  variables = {"params": params}

  def choose(hidden, ended):
    logits = model.apply(variables, hidden, method="logits")
    return jnp.where(ended, eos, jnp.argmax(logits, -1).astype(jnp.int32))

  def is_open(carry):
    i, text, _ = carry
    return (i < length) & ~jnp.all(text[:, i - 1] == eos)

  def step(carry):
    i, text, state = carry
    last = jax.lax.dynamic_slice_in_dim(text, i - 1, 1, axis=1)
    hidden, state = model.apply(variables, last, state, method="extend")
    token = choose(hidden[:, 0], last[:, 0] == eos)
    return i + 1, text.at[:, i].set(token), state

  hidden, state = model.apply(
    variables,
    images,
    prefix,
    mask_input,
    answer_len=length - 1,
    method="prefill",
  )
  text = jnp.full((prefix.shape[0], length), eos, jnp.int32)
  text = text.at[:, 0].set(choose(hidden, False))
  return jax.lax.while_loop(is_open, step, (jnp.int32(1), text, state))[1]
