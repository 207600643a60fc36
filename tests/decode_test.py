"""Masked decoding: always valid, and what the full forward pass prefers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax.action_tokens import IntegerTokens, RareTokens
from rt2_jax.actions import RT2, ActionTokenizer
from rt2_jax.decode import decode_actions, decode_text
from rt2_jax.models import variants
from rt2_jax.models.vlm import VLM, init_params

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


def decode(setup, tokenizer):
  model, *rest = setup
  call = functools.partial(decode_actions, model, grammar=tokenizer.grammar)
  return np.asarray(jax.jit(call)(*rest))


def test_each_token_is_the_best_valid_one_of_the_full_forward(setup):
  """Greedy decoding is a fixed point of teacher forcing on its own output."""
  model, params, *inputs = setup
  ids = decode(setup, RARE)
  assert ids.shape == (3, 8)
  logits = model.apply({"params": params}, *inputs, ids)
  candidates = np.asarray(RARE.route.ids)
  scores = np.where(RARE.grammar.allowed, logits[..., candidates], -np.inf)
  np.testing.assert_array_equal(candidates[scores.argmax(-1)], ids)


@pytest.mark.parametrize("tokenizer", [RARE, INTEGERS])
def test_a_random_model_still_yields_valid_actions(setup, tokenizer):
  ids = decode(setup, tokenizer)
  actions = tokenizer.decode(ids)
  assert actions.shape == (3, 8) and set(actions[:, 0]) <= {0.0, 1.0}
  low = [d.low for d in RT2.dimensions]
  high = [d.high for d in RT2.dimensions]
  assert (actions >= low).all() and (actions <= high).all()


def test_an_example_does_not_depend_on_its_neighbours(setup):
  model, params, *inputs = setup
  together = decode(setup, RARE)
  for b in range(3):
    alone = decode((model, params, *(x[b : b + 1] for x in inputs)), RARE)
    np.testing.assert_array_equal(alone[0], together[b])


def test_free_text_is_a_fixed_point_of_teacher_forcing(setup):
  model, params, *inputs = setup
  eos = 1
  text = np.asarray(decode_text(model, params, *inputs, length=7, eos=eos))
  assert text.shape == (3, 7)
  logits = model.apply({"params": params}, *inputs, text)
  best = np.asarray(logits.argmax(-1))
  ended = np.cumsum(text == eos, 1) - (text == eos) > 0
  np.testing.assert_array_equal(np.where(ended, eos, best), text)


def test_a_text_that_has_ended_stays_ended(setup):
  """The token that each example likes best is declared to end a text."""
  model, params, *inputs = setup
  free = np.asarray(decode_text(model, params, *inputs, length=7, eos=-1))
  eos = int(free[0, 2])
  text = np.asarray(decode_text(model, params, *inputs, length=7, eos=eos))
  for row, unended in zip(text, free, strict=True):
    end = np.flatnonzero(unended == eos)
    stop = end[0] if len(end) else 7
    np.testing.assert_array_equal(row[:stop], unended[:stop])
    assert (row[stop:] == eos).all()
