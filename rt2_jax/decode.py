"""Answering: prefill, then token by token, in one compiled call.

On a robot's question only tokens that the action grammar allows compete, and
their logits alone are computed: a malformed action cannot be decoded (paper,
section 3.2, "Output constraint"). Plans and other questions have the whole
vocabulary. The argmax of NaN is token 0, so each call also says whether the
logits that it chose by were finite.

Shapes: B examples, F images, R x R encoder pixels, P prefix columns, L tokens
of an action, K candidate tokens, Q grammar states, E tokens that end a plan,
N tokens of a plan with its end, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rt2_jax.action_tokens import Grammar
from rt2_jax.models.vlm import VLM, DecodeState
from rt2_jax.tokenizer import EOS, PAD


class Prompts(NamedTuple):
  """What a model answers to, in the order of `VLM.prefill`.

  Attributes:
    images: float32[B, F, R, R, 3] in [-1, 1].
    prefix: int32[B, P], padded on the left.
    mask_input: bool[B, P], True on real tokens.
    mask_image: bool[B, F], False on images that do not exist; None: all do.
  """

  images: jax.Array
  prefix: jax.Array
  mask_input: jax.Array
  mask_image: jax.Array | None = None


def decode_actions(
  model: VLM,
  params: dict,
  prompts: Prompts,
  grammar: Grammar,
) -> tuple[jax.Array, jax.Array]:
  """Decodes the most likely action tokens, greedily.

  Args:
    model: whose `prefill`, `extend` and `logits_of` are used.
    params: its parameters.
    prompts: what the answers follow.
    grammar: which token may follow which.

  Returns:
    int32[B, L], for `ActionTokenizer.decode`; and bool[B], whether all logits
    were finite.
  """
  hidden, state = model.apply(
    {"params": params},
    *prompts,
    answer_len=grammar.length - 1,
    method="prefill",
  )
  return _act(model, params, hidden, state, grammar)


def decode_plans_and_actions(
  model: VLM,
  params: dict,
  prompts: Prompts,
  grammar: Grammar,
  plan_end: Sequence[int],
  plan_length: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Chain of thought: free text until it ends itself, then an action, greedily.

  Args:
    model: whose `prefill`, `extend`, `logits` and `logits_of` are used.
    params: its parameters.
    prompts: what the answers follow.
    grammar: which token of an action may follow which.
    plan_end: E tokens, after which a plan ends and an action begins.
    plan_length: most tokens before them. What is missing of them is forced
      upon a longer plan, and upon one after which the answer would end.

  Returns:
    Plans int32[B, N], each with its end and padded on the right, where
    N = plan_length + E; actions int32[B, L] and bool[B], as `decode_actions`.
  """
  hidden, state = model.apply(
    {"params": params},
    *prompts,
    answer_len=plan_length + len(plan_end) + grammar.length - 1,
    method="prefill",
  )
  plans, planned, hidden, state = _plan(
    model, params, hidden, state, jnp.asarray(plan_end), plan_length
  )
  actions, acted = _act(model, params, hidden, state, grammar)
  return plans, actions, planned & acted


def _plan(
  model: VLM,
  params: dict,
  hidden: jax.Array,
  state: DecodeState,
  end: jax.Array,
  length: int,
) -> tuple[jax.Array, jax.Array, jax.Array, DecodeState]:
  """Writes plans until all have ended; those that have wait for the others.

  Args:
    model: as above.
    params: likewise.
    hidden: dtype[B, D], which predicts the first token.
    state: room for N tokens at least.
    end: int32[E].
    length: most tokens before the end.

  Returns:
    Plans int32[B, N]; bool[B], whether all logits were finite; and what
    predicts the first token after each, as `hidden` and `state`.
  """
  variables = {"params": params}
  sizes = range(1, len(end) + 1)

  def written(recent):
    """int32[B, E], the last tokens -> int32[B], how many begin `end`."""
    fits = [n * (recent[:, -n:] == end[:n]).all(-1) for n in sizes]
    return jnp.max(jnp.stack(fits), 0)

  def is_open(carry):
    recent = carry[2]
    return ~jnp.all(recent == end)

  def step(carry):
    i, plans, recent, most, finite, hidden, state = carry
    n = written(recent)
    ended = n == len(end)
    logits = model.apply(variables, hidden, method="logits")
    finite &= _all_finite(logits)
    best = jnp.argmax(logits, -1)
    # Where the web has taught plans they end an answer; here an action follows.
    most = jnp.where(best == EOS, jnp.minimum(most, i), most)
    token = jnp.where(i >= most, end[n], best)
    token = jnp.where(ended, PAD, token).astype(jnp.int32)
    following, longer = model.apply(
      variables, token[:, None], state, method="extend"
    )
    shifted = jnp.concatenate([recent[:, 1:], token[:, None]], 1)
    recent = jnp.where(ended[:, None], recent, shifted)
    hidden = jnp.where(ended[:, None], hidden, following[:, 0])
    state = _unless(ended, state, longer)
    plans = plans.at[:, i].set(token)
    return i + 1, plans, recent, most, finite, hidden, state

  batch = len(hidden)
  plans = jnp.full((batch, length + len(end)), PAD, jnp.int32)
  recent = jnp.full((batch, len(end)), -1, jnp.int32)
  most = jnp.full(batch, length, jnp.int32)
  finite = jnp.ones(batch, bool)
  start = (jnp.int32(0), plans, recent, most, finite, hidden, state)
  _, plans, *_, finite, hidden, state = jax.lax.while_loop(is_open, step, start)
  return plans, finite, hidden, state


def _all_finite(logits: jax.Array) -> jax.Array:
  """float32[B, …] before any mask -> bool[B]."""
  return jnp.isfinite(logits).reshape(len(logits), -1).all(-1)


def _unless(
  waits: jax.Array, before: DecodeState, after: DecodeState
) -> DecodeState:
  """The state after a token that the waiting examples bool[B] do not take.

  It fills a slot in everyone's cache, where they never look.
  """
  return after.replace(
    mask_input=jnp.where(waits[:, None], before.mask_input, after.mask_input),
    position=jnp.where(waits, before.position, after.position),
  )


def _act(
  model: VLM,
  params: dict,
  hidden: jax.Array,
  state: DecodeState,
  grammar: Grammar,
) -> tuple[jax.Array, jax.Array]:
  """The action int32[B, L] whose first token `hidden` dtype[B, D] predicts.

  The second result is bool[B], whether all logits were finite.
  """
  variables = {"params": params}
  ids = jnp.asarray(grammar.ids)
  allowed = jnp.asarray(grammar.allowed)
  next_state = jnp.asarray(grammar.next_state)

  def choose(hidden, place):
    """Hidden state dtype[B, D] and grammar state int32[B] to a token each."""
    logits = model.apply(variables, hidden, ids, method="logits_of")
    best = jnp.argmax(jnp.where(allowed[place], logits, -jnp.inf), -1)
    return ids[best], next_state[place, best], _all_finite(logits)

  def step(carry, _):
    token, place, finite, state = carry
    hidden, state = model.apply(
      variables, token[:, None], state, method="extend"
    )
    token, place, is_finite = choose(hidden[:, 0], place)
    return (token, place, finite & is_finite, state), token

  start = jnp.zeros(len(hidden), jnp.int32)
  token, place, finite = choose(hidden, start)
  (_, _, finite, _), rest = jax.lax.scan(
    step, (token, place, finite, state), length=grammar.length - 1
  )
  return jnp.concatenate([token[:, None], rest.T], axis=1), finite


def decode_text(
  model: VLM,
  params: dict,
  prompts: Prompts,
  length: int,
  eos: int,
) -> tuple[jax.Array, jax.Array]:
  """Decodes the most likely free text, greedily, over the whole vocabulary.

  Stops when every example has ended.

  Args:
    model: whose `prefill`, `extend` and `logits` are used.
    params: its parameters.
    prompts: what the answers follow.
    length: L, tokens at most.
    eos: the token that ends a text; it also fills what follows.

  Returns:
    int32[B, L]; and bool[B], whether all logits were finite.
  """
  variables = {"params": params}

  def choose(hidden, ended):
    logits = model.apply(variables, hidden, method="logits")
    token = jnp.where(ended, eos, jnp.argmax(logits, -1).astype(jnp.int32))
    return token, _all_finite(logits)

  def is_open(carry):
    i, text, *_ = carry
    return (i < length) & ~jnp.all(text[:, i - 1] == eos)

  def step(carry):
    i, text, finite, state = carry
    last = jax.lax.dynamic_slice_in_dim(text, i - 1, 1, axis=1)
    hidden, state = model.apply(variables, last, state, method="extend")
    token, is_finite = choose(hidden[:, 0], last[:, 0] == eos)
    return i + 1, text.at[:, i].set(token), finite & is_finite, state

  hidden, state = model.apply(
    variables,
    *prompts,
    answer_len=length - 1,
    method="prefill",
  )
  text = jnp.full((len(prompts.prefix), length), eos, jnp.int32)
  token, finite = choose(hidden, False)
  start = (jnp.int32(1), text.at[:, 0].set(token), finite, state)
  _, text, finite, _ = jax.lax.while_loop(is_open, step, start)
  return text, finite
