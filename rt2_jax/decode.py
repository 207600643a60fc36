"""Decodes answers greedily, in one compiled call.

For actions only tokens that the grammar allows compete, and their logits alone
are computed: a malformed action cannot be decoded (paper, section 3.2, "Output
constraint"). Plans and other answers have the whole vocabulary, token by token.

An action is drafted and verified (Jacobi decoding). One pass over a draft gives
the greedy token at every position, given the draft's tokens before it. Up to
and including the first position that differs they are the greedy tokens; they
are kept, and the next pass takes its draft from this one. The last pass changes
nothing. A wrong draft costs as many passes as there are tokens, as decoding one
by one does; a good one costs one or two, the first of them within the prefill.

The argmax of NaN is token 0, so each call also says whether the logits were
finite.

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


class Actions(NamedTuple):
  """Decoded actions.

  Attributes:
    ids: int32[B, L], for `ActionTokenizer.decode`.
    passes: int32[B], passes over the answer until it was verified.
    finite: bool[B], whether all logits were finite.
  """

  ids: jax.Array
  passes: jax.Array
  finite: jax.Array


def decode_actions(
  model: VLM,
  params: dict,
  prompts: Prompts,
  drafts: jax.Array,
  grammar: Grammar,
) -> Actions:
  """Decodes the likeliest valid actions, greedily.

  Args:
    model: whose `prefill`, `extend` and `logits_of` are used.
    params: its parameters.
    prompts: what the answers follow.
    drafts: int32[B, L], any tokens; they change the number of passes only.
    grammar: which token may follow which.
  """
  columns = columns_of(drafts, grammar)
  hidden, state = model.apply(
    {"params": params},
    *prompts,
    draft=jnp.asarray(grammar.ids)[columns[:, :-1]],
    answer_len=grammar.length - 1,
    method="prefill",
  )
  return verify(model, params, hidden, state, columns, grammar)


def decode_plans_and_actions(
  model: VLM,
  params: dict,
  prompts: Prompts,
  drafts: jax.Array,
  grammar: Grammar,
  plan_end: Sequence[int],
  plan_length: int,
) -> tuple[jax.Array, Actions]:
  """Decodes a plan (chain of thought) and the action after it, greedily.

  Args:
    model: whose `prefill`, `extend`, `logits` and `logits_of` are used.
    params: its parameters.
    prompts: what the answers follow.
    drafts: of the actions, as in `decode_actions`.
    grammar: which token of an action may follow which.
    plan_end: E tokens, after which a plan ends and an action begins.
    plan_length: most tokens before them. A plan that reaches this length, or
      predicts eos, is cut: the rest of `plan_end` is forced.

  Returns:
    Plans int32[B, N], each with its end and padded on the right, where
    N = plan_length + E; and the actions.
  """
  hidden, state = model.apply(
    {"params": params},
    *prompts,
    answer_len=plan_length + len(plan_end) + grammar.length - 1,
    method="prefill",
  )
  plans, finite, hidden, state = _plan(
    model, params, hidden[:, 0], state, jnp.asarray(plan_end), plan_length
  )
  columns = columns_of(drafts, grammar)
  hidden = _pass_over(model, params, hidden[:, None], state, columns, grammar)
  actions = verify(model, params, hidden, state, columns, grammar)
  return plans, actions._replace(finite=actions.finite & finite)


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
    """Counts how many of the last tokens int32[B, E] begin `end`, int32[B]."""
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
  """Checks float32[B, …], before any mask, in each example: bool[B]."""
  return jnp.isfinite(logits).reshape(len(logits), -1).all(-1)


def _unless(
  waits: jax.Array, before: DecodeState, after: DecodeState
) -> DecodeState:
  """Undoes a token in the examples bool[B] that wait.

  It fills a slot in everyone's cache, to which they never attend.
  """
  return after.replace(
    mask_input=jnp.where(waits[:, None], before.mask_input, after.mask_input),
    position=jnp.where(waits, before.position, after.position),
  )


def columns_of(tokens: jax.Array, grammar: Grammar) -> jax.Array:
  """Finds tokens int32[B, L] among the candidates; others become column 0."""
  return jnp.argmax(tokens[..., None] == jnp.asarray(grammar.ids), -1)


def _pass_over(model, params, first, state, columns, grammar) -> jax.Array:
  """Reads drafted actions, int[B, L] columns, behind their prompts.

  Returns:
    dtype[B, L, D]; `[:, i]` predicts token i, given the draft's before it. The
    first is `first`, dtype[B, 1, D].
  """
  tokens = jnp.asarray(grammar.ids)[columns[:, :-1]]
  rest, _ = model.apply({"params": params}, tokens, state, method="extend")
  return jnp.concatenate([first, rest], axis=1)


def verify(model, params, hidden, state, columns, grammar) -> Actions:
  """Passes over drafted actions until all are their own greedy answer.

  Args:
    model: as in `decode_actions`.
    params: likewise.
    hidden: dtype[B, L, D] of the first pass, see `_pass_over`.
    state: behind the prompts.
    columns: int[B, L], the first pass's draft.
    grammar: whose columns they are.
  """
  ids, length = jnp.asarray(grammar.ids), grammar.length

  def check(hidden, columns, verified):
    """Returns the pass's columns, verified int[B] of them, and finite."""
    logits = model.apply({"params": params}, hidden, ids, method="logits_of")
    kept = jnp.arange(length) < verified[:, None]
    best = _walk(logits, jnp.where(kept, columns, -1), grammar)
    # The last token is no input: whatever was drafted, it is verified.
    equal = (best == columns)[:, :-1]
    verified = 1 + jnp.cumprod(equal, axis=1).sum(1)
    return best, verified, _all_finite(logits)

  def step(carry):
    _, columns, verified, passes, finite = carry
    hidden_now = _pass_over(
      model, params, hidden[:, :1], state, columns, grammar
    )
    passes += verified < length
    columns, verified, is_finite = check(hidden_now, columns, verified)
    is_open = jnp.any(verified < length)
    return is_open, columns, verified, passes, finite & is_finite

  none = jnp.zeros(len(columns), jnp.int32)
  columns, verified, finite = check(hidden, columns, none)
  # A loop that ends by a flag: what predicts its time must not take a number
  # in its condition for the number of turns.
  is_open = jnp.any(verified < length)
  start = is_open, columns, verified, none + 1, finite
  _, columns, _, passes, finite = jax.lax.while_loop(
    lambda carry: carry[0], step, start
  )
  return Actions(ids[columns], passes, finite)


def _walk(logits: jax.Array, kept: jax.Array, grammar: Grammar) -> jax.Array:
  """Chooses the likeliest valid columns, int[B, L], from left to right.

  Args:
    logits: float32[B, L, K].
    kept: int[B, L], columns that are settled, -1 on all others.
    grammar: what is valid.
  """
  allowed, next_state = map(jnp.asarray, (grammar.allowed, grammar.next_state))

  def step(place, now):
    logits, kept = now
    best = jnp.argmax(jnp.where(allowed[place], logits, -jnp.inf), -1)
    best = jnp.where(kept < 0, best, kept)
    return next_state[place, best], best

  start = jnp.zeros(len(logits), next_state.dtype)
  by_position = logits.swapaxes(0, 1), kept.T
  return jax.lax.scan(step, start, by_position)[1].T


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
  token, finite = choose(hidden[:, 0], False)
  start = (jnp.int32(1), text.at[:, 0].set(token), finite, state)
  _, text, finite, _ = jax.lax.while_loop(is_open, step, start)
  return text, finite
