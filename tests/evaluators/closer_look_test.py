"""Probabilities are those of training's logits; attention adds up."""

import copy

import jax
import numpy as np
import pytest
from scipy import special

from rt2_jax import augment, held_params, trees
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.errors import UserError
from rt2_jax.evaluators.closer_look import look_closer
from rt2_jax.models.vlm import VLM
from rt2_jax.observation import Observation, ObservationSpec, to_batch
from rt2_jax.policy import Policy
from rt2_jax.prompt import Prompt
from tests import tiny_models

PATCHES = 16  # of each of two frames


def policy(tokenizer, route="rare", plan_length=0) -> Policy:
  config = tiny_models.config("gemma1", tokenizer.vocab_size, num_images=2)
  meta = tiny_models.meta(config, tokenizer, route)
  prompt = meta["prompt"] | {"plan_length": plan_length}
  return Policy(
    config,
    jax.tree.map(np.asarray, tiny_models.params(config)),
    Prompt(tokenizer, **prompt),
    ActionTokenizer.from_dict(meta["action_tokenizers"]["kitchen"]),
    ObservationSpec(history=2),
  )


@pytest.fixture(scope="module")
def seen() -> Observation:
  coarse = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
  frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
  return Observation({"primary": frames}, "pick the can")


@pytest.fixture(scope="module")
def acts(tokenizer) -> Policy:
  return policy(tokenizer)


def test_probabilities_are_those_of_training(acts, seen):
  look = look_closer(acts, seen)
  np.testing.assert_array_equal(look.actions, acts.act([seen])[0])
  tokenizer = acts.action_tokenizer
  bins = tokenizer.to_bins(look.actions)
  np.testing.assert_array_equal(look.probabilities.argmax(-1), bins)

  batch = to_batch([seen], acts.observation)
  suffix, *_ = acts.prompt.suffix(tokenizer.encode(look.actions))
  images = augment.prepare(batch.image, 32, batch.image_size)
  columns = images, *acts.prompts(batch), suffix[None]
  train = jax.jit(lambda *columns: VLM(acts.model).apply(*columns))
  logits = train({"params": acts.params}, *columns)
  candidates = np.asarray(logits)[0, :8][:, np.asarray(tokenizer.route.ids)]
  expected = special.softmax(candidates[1:], -1)  # all but terminate
  np.testing.assert_allclose(look.probabilities[0, 1:], expected, atol=1e-5)
  terminates = special.softmax(candidates[0, :2])
  np.testing.assert_allclose(
    look.probabilities[0, 0, :2], terminates, atol=1e-5
  )
  assert not look.probabilities[0, 0, 2:].any()


def test_a_model_that_cannot_tell_looks_everywhere_alike(tokenizer, acts, seen):
  """Without queries each of the n tokens before a choice gets 1 / n."""
  look = look_closer(acts, seen)
  assert look.attention.shape == (1, 8, 2, 4, 4)
  assert np.ptp(look.attention[0, 1]) > 1e-3  # it prefers some patches
  blind = policy(tokenizer)
  flat = trees.flatten(blind.params)
  (name,) = [name for name in flat if name.endswith("q_einsum/w")]
  blind.params = trees.unflatten(flat | {name: np.zeros_like(flat[name])})
  _, shown = blind.prompts(to_batch([seen], blind.observation))
  tokens = 2 * PATCHES + shown.sum() + np.arange(8)
  attention = look_closer(blind, seen).attention[0]
  expected = np.broadcast_to(1 / tokens[:, None, None, None], attention.shape)
  np.testing.assert_allclose(attention, expected, rtol=1e-5)


@pytest.mark.parametrize("other", [{"route": "integers"}, {"plan_length": 6}])
def test_numbers_without_one_token_each_are_refused(tokenizer, seen, other):
  with pytest.raises(UserError, match="expected one token for each number"):
    look_closer(policy(tokenizer, **other), seen)


def test_layers_apart_show_the_same(acts, seen):
  apart = copy.copy(acts)
  apart.params = held_params.apart(dict(acts.params))
  expected, got = look_closer(acts, seen), look_closer(apart, seen)
  np.testing.assert_allclose(
    got.probabilities, expected.probabilities, atol=1e-5
  )
  np.testing.assert_allclose(got.attention, expected.attention, atol=1e-5)
