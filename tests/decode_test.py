"""Masked decoding: always valid, and what the full forward pass prefers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.action_tokens import IntegerTokens, RareTokens
from rt2_jax.decode import (
  Prompts,
  decode_actions,
  decode_plans_and_actions,
  decode_text,
)
from rt2_jax.models import variants
from rt2_jax.models.vlm import VLM, init_params
from rt2_jax.tokenizer import EOS, PAD
from tests import tiny_models

VOCAB = 300
RARE = ActionTokenizer(RT2, RareTokens(tuple(range(40, 296))))
INTEGERS = ActionTokenizer(
  RT2,
  IntegerTokens(tuple((c, 10 + i) for i, c in enumerate("0123456789- ")), 1),
)


@pytest.fixture(scope="module", params=["gemma_tiny", "gemma2_tiny"])
def setup(request):
  config = variants.vlm(
    "tiny/16", request.param, image_size=32, vocab_size=VOCAB
  )
  params = init_params(config, jax.random.key(0))
  images = jax.random.uniform(jax.random.key(1), (3, 1, 32, 32, 3))
  prefix = jax.random.randint(jax.random.key(2), (3, 6), 2, VOCAB)
  mask_input = jnp.arange(6) >= jnp.array([[0], [2], [4]])
  return VLM(config), params, images, prefix, mask_input


def decode(setup, tokenizer, drafts=None):
  """Returns the ids and the passes of each row."""
  model, params, *inputs = setup
  if drafts is None:
    drafts = np.tile(tokenizer.draft(None), (len(inputs[0]), 1))
  call = functools.partial(decode_actions, model, grammar=tokenizer.grammar)
  found = jax.jit(call)(params, Prompts(*inputs), drafts)
  assert found.finite.shape == found.ids.shape[:1] and found.finite.all()
  return np.asarray(found.ids), np.asarray(found.passes)


def test_each_token_is_the_best_valid_one_of_the_full_forward(setup):
  """Greedy decoding is a fixed point of teacher forcing on its own output."""
  model, params, *inputs = setup
  ids, _ = decode(setup, RARE)
  assert ids.shape == (3, 8)
  logits = model.apply({"params": params}, *inputs, ids)
  candidates = np.asarray(RARE.route.ids)
  scores = np.where(RARE.grammar.allowed, logits[..., candidates], -np.inf)
  np.testing.assert_array_equal(candidates[scores.argmax(-1)], ids)


@pytest.mark.parametrize("tokenizer", [RARE, INTEGERS])
def test_a_random_model_still_yields_valid_actions(setup, tokenizer):
  ids, _ = decode(setup, tokenizer)
  actions = tokenizer.decode(ids)
  assert actions.shape == (3, 1, 8) and set(actions[:, 0, 0]) <= {0.0, 1.0}
  low = [d.low for d in RT2.dimensions]
  high = [d.high for d in RT2.dimensions]
  assert (actions >= low).all() and (actions <= high).all()


def test_an_example_does_not_depend_on_its_neighbours(setup):
  model, params, *inputs = setup
  together, passes = decode(setup, RARE)
  for b in range(3):
    row = model, params, *(x[b : b + 1] for x in inputs)
    alone, its_passes = decode(row, RARE)
    np.testing.assert_array_equal(alone[0], together[b])
    assert its_passes[0] == passes[b]


CHUNKS = ActionTokenizer(RT2, RARE.route, horizon=3)


@pytest.mark.parametrize(
  ("decoder", "tokenizer"),
  [("gemma1", RARE), ("gemma2", INTEGERS), ("gemma1", CHUNKS)],
  ids=["rare", "integers", "chunks"],
)
def test_any_draft_leads_to_the_tokens_of_decoding_one_by_one(
  decoder, tokenizer
):
  """On 40 images; a right draft takes one pass, a wrong one no more than L."""
  rows, length = 40, tokenizer.grammar.length
  config = tiny_models.config(decoder, VOCAB)
  model, params = VLM(config), tiny_models.params(config)
  random = np.random.default_rng(0)
  coarse = random.uniform(-1, 1, (rows, 1, 4, 4, 3)).astype(np.float32)
  prompts = Prompts(
    coarse.repeat(8, axis=2).repeat(8, axis=3),
    random.integers(2, VOCAB, (rows, 6)),
    np.arange(6) >= random.integers(0, 6, (rows, 1)),
  )
  expected = decode_one_by_one(model, params, prompts, tokenizer.grammar)
  assert len(np.unique(expected, axis=0)) > rows / 2
  nearly = expected.copy()
  nearly[:, 3] = tokenizer.grammar.ids[2]
  call = functools.partial(decode_actions, model, grammar=tokenizer.grammar)
  call = jax.jit(call)
  for drafts, most in (
    (random.integers(0, VOCAB, expected.shape), length),
    (np.tile(tokenizer.draft(None), (rows, 1)), length),
    (nearly, length - 3),
    (expected, 1),
  ):
    found = call(params, prompts, drafts)
    np.testing.assert_array_equal(found.ids, expected)
    assert found.passes.min() >= 1 and found.passes.max() <= most
  call(params, prompts, nearly)
  assert call._cache_size() == 1


def decode_one_by_one(model, params, prompts, grammar):
  """The definition: prefill, then one masked token after the other."""
  variables = {"params": params}
  ids, allowed, following = map(jnp.asarray, grammar[:3])

  @jax.jit
  def run(prompts):
    hidden, state = model.apply(
      variables, *prompts, answer_len=grammar.length, method="prefill"
    )

    def step(carry, _):
      hidden, state, place = carry
      logits = model.apply(variables, hidden[:, 0], ids, method="logits_of")
      best = jnp.where(allowed[place], logits, -jnp.inf).argmax(-1)
      token = ids[best]
      hidden, state = model.apply(
        variables, token[:, None], state, method="extend"
      )
      return (hidden, state, following[place, best]), token

    start = hidden, state, jnp.zeros(len(hidden), jnp.int32)
    return jax.lax.scan(step, start, length=grammar.length)[1].T

  return np.asarray(run(prompts))


LENGTH = 6  # most tokens of a plan


@functools.partial(jax.jit, static_argnums=0)
def full_forward(model, params, *columns):
  return model.apply({"params": params}, *columns)


@functools.partial(jax.jit, static_argnums=0)
def _decode_plans(model, params, images, prefix, mask_input, end):
  inputs = Prompts(images, prefix, mask_input)
  drafts = jnp.tile(RARE.draft(None), (len(images), 1))
  return decode_plans_and_actions(
    model, params, inputs, drafts, RARE.grammar, end, LENGTH
  )


def decode_plans(setup, end):
  plans, actions = _decode_plans(*setup, jnp.asarray(end))
  assert actions.finite.all()
  return np.asarray(plans), np.asarray(actions.ids)


def write(model, params, *inputs, **fields):
  text, finite = decode_text(model, params, Prompts(*inputs), **fields)
  assert finite.all()
  return np.asarray(text)


def free_text(setup):
  model, params, *inputs = setup
  return write(model, params, *inputs, length=8, eos=-1)


def never_written(setup, count):
  """Tokens that no row of the batch writes by itself."""
  written = free_text(setup)
  return tuple([i for i in range(3, VOCAB) if i not in written][:count])


def one_by_one(setup, end):
  """Each row alone; every token from a full forward pass over those before."""
  model, params, *inputs = setup
  candidates = np.asarray(RARE.route.ids)

  def scores(row, answer):
    padded = np.asarray([answer + [0] * (20 - len(answer))], np.int32)
    return np.asarray(full_forward(model, params, *row, padded))[0, len(answer)]

  for b in range(3):
    row = [x[b : b + 1] for x in inputs]
    plan = []
    while tuple(plan[-len(end) :]) != end:
      begun = [n for n in range(1, len(end)) if tuple(plan[-n:]) == end[:n]]
      best = int(scores(row, plan).argmax())
      plan.append(best if len(plan) < LENGTH else end[max(begun, default=0)])
    action = []
    for valid in RARE.grammar.allowed:
      best = np.where(valid, scores(row, plan + action)[candidates], -np.inf)
      action.append(int(candidates[best.argmax()]))
    yield plan, action


@pytest.mark.parametrize(
  "kind", ["early", "late", "one", "again", "begun", "never"]
)
def test_plans_and_actions_are_those_of_the_full_forward(setup, kind):
  """Where the end is what a row writes by itself, it stops early."""
  free = free_text(setup)[0].tolist()
  end = {
    "early": tuple(free[2:4]),
    "late": tuple(free[5:7]),  # its last token stands beyond the length
    "one": (free[1],),
    "again": (free[2], free[2], 7),  # a row may begin it again and again
    "begun": (free[5], *never_written(setup, 2)),
    "never": never_written(setup, 3),
  }[kind]
  plans, actions = decode_plans(setup, end)
  assert plans.shape == (3, LENGTH + len(end)) and actions.shape == (3, 8)
  for b, (plan, action) in enumerate(one_by_one(setup, end)):
    padding = [0] * (plans.shape[1] - len(plan))
    np.testing.assert_array_equal(plans[b], plan + padding)
    np.testing.assert_array_equal(actions[b], action)


def test_a_plan_that_does_not_end_is_ended(setup):
  end = never_written(setup, 3)
  plans, actions = decode_plans(setup, end)
  np.testing.assert_array_equal(plans[:, :LENGTH], free_text(setup)[:, :LENGTH])
  np.testing.assert_array_equal(plans[:, LENGTH:], [end] * 3)
  assert RARE.decode(actions).shape == (3, 1, 8)


def test_where_a_plan_would_end_the_answer_an_action_follows(setup):
  """A model that answers questions with plans writes eos after them."""
  model, params, *inputs = setup
  first = free_text(setup)[0, 0]
  flat = traverse_util.flatten_dict(params)
  (table,) = [path for path in flat if path[-1] == "input_embedding"]
  flat[table] = flat[table].at[EOS].set(2 * flat[table][first])
  likes_to_end = traverse_util.unflatten_dict(flat)
  text = write(model, likes_to_end, *inputs, length=1, eos=EOS)
  assert text[0] == EOS
  end = (7, 8, 9)
  plans, actions = decode_plans((model, likes_to_end, *inputs), end)
  assert plans[0].tolist() == [*end, *[PAD] * LENGTH]
  assert RARE.decode(actions).shape == (3, 1, 8)


def test_a_plan_does_not_depend_on_its_neighbours(setup):
  """The row that stops first waits, and then acts as it does alone."""
  model, params, *inputs = setup
  end = tuple(free_text(setup)[0, 2:4].tolist())
  plans, actions = decode_plans(setup, end)
  assert len(set((plans != 0).sum(1))) > 1
  for b in range(3):
    alone = (model, params, *(x[b : b + 1] for x in inputs))
    plan, action = decode_plans(alone, end)
    np.testing.assert_array_equal(plan[0], plans[b])
    np.testing.assert_array_equal(action[0], actions[b])


def test_free_text_is_a_fixed_point_of_teacher_forcing(setup):
  model, params, *inputs = setup
  eos = 1
  text = write(model, params, *inputs, length=7, eos=eos)
  assert text.shape == (3, 7)
  logits = model.apply({"params": params}, *inputs, text)
  best = np.asarray(logits.argmax(-1))
  ended = np.cumsum(text == eos, 1) - (text == eos) > 0
  np.testing.assert_array_equal(np.where(ended, eos, best), text)


def test_a_text_that_has_ended_stays_ended(setup):
  """The token that each example likes best is declared to end a text."""
  model, params, *inputs = setup
  free = write(model, params, *inputs, length=7, eos=-1)
  eos = int(free[0, 2])
  text = write(model, params, *inputs, length=7, eos=eos)
  for row, unended in zip(text, free, strict=True):
    end = np.flatnonzero(unended == eos)
    stop = end[0] if len(end) else 7
    np.testing.assert_array_equal(row[:stop], unended[:stop])
    assert (row[stop:] == eos).all()
