"""Plans and actions in PyTorch are those of `decode.py`, token for token."""

import jax
import numpy as np
import pytest
import torch

from rt2_jax import augment, trees
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.decode import Prompts, decode_plans_and_actions
from rt2_jax.models.vlm import VLM
from rt2_jax.prompt import Prompt
from rt2_jax.pytorch.decode import decode
from rt2_jax.pytorch.policy import TorchPolicy
from rt2_jax.tokenizer import EOS, PAD
from rt2_jax.weights import export
from tests import tiny_models
from tests.tiny_models import EMBEDDING

LENGTH = 8  # most tokens of a plan
ROBOTS = 12
NEVER = (5, 6, 7)  # byte tokens


class Pair:
  """The same parameters in JAX and in PyTorch, with one batch of inputs."""

  def __init__(self, folder, tokenizer, change=lambda table: None):
    config = tiny_models.config("gemma1", tokenizer.vocab_size)
    flat = trees.flatten(tiny_models.params(config))
    change(flat[EMBEDDING])
    self.model, self.params = VLM(config), trees.unflatten(flat)
    meta = tiny_models.meta(config, tokenizer)
    export.to_huggingface(self.params, config, meta, tokenizer.model, folder)
    self.torch = TorchPolicy.from_folder(folder)
    stored = meta["action_tokenizers"]["kitchen"]
    self.actions = ActionTokenizer.from_dict(stored)
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (ROBOTS, 1, 4, 5, 3), np.uint8)
    self.images = coarse.repeat(12, axis=2).repeat(12, axis=3)
    prompt = Prompt(tokenizer, **meta["prompt"])
    self.prompts = prompt.prefixes(
      [prompt.robot_question(f"pick can {i}") for i in range(ROBOTS)]
    )

  def in_jax(self, end):
    drafts = np.tile(self.actions.draft(None), (ROBOTS, 1))

    @jax.jit
    def run(params, *inputs):
      prompts = Prompts(*inputs), drafts
      return decode_plans_and_actions(
        self.model, params, *prompts, self.actions.grammar, end, LENGTH
      )

    images = augment.prepare(self.images, 32)
    plans, actions = run(self.params, images, *self.prompts)
    assert actions.finite.all()
    return np.asarray(plans), np.asarray(actions.ids)

  @torch.inference_mode()
  def in_torch(self, end):
    pixels = self.torch.prepare(self.images, ROBOTS)
    shown = self.torch.shown(self.images)
    inputs = self.torch.inputs(shown, *self.prompts)
    plans, actions, finite = decode(
      self.torch.model, inputs, pixels, self.actions.grammar, end, LENGTH
    )
    assert finite.all()
    return plans, actions

  def assert_equal(self, end):
    """Returns the plans."""
    plans, actions = self.in_jax(end)
    found, found_actions = self.in_torch(end)
    np.testing.assert_array_equal(found, plans)
    np.testing.assert_array_equal(found_actions, actions)
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tokenizer):
  return Pair(tmp_path_factory.mktemp("pair"), tokenizer)


def test_a_plan_that_does_not_end_is_ended(pair):
  plans = pair.assert_equal(NEVER)
  assert plans.shape == (ROBOTS, LENGTH + len(NEVER))
  np.testing.assert_array_equal(plans[:, LENGTH:], [NEVER] * ROBOTS)


def test_plans_that_end_themselves_wait_for_the_others(pair):
  free, _ = pair.in_torch(NEVER)
  end = tuple(free[0, 2:4].tolist())
  plans = pair.assert_equal(end)
  sizes = (plans != PAD).sum(1)
  assert sizes[0] < sizes.max()


def test_where_a_plan_would_end_the_answer_an_action_follows(
  pair, tmp_path, tokenizer
):
  first = pair.in_torch(NEVER)[0][0, 0]

  def like_to_end(table):
    table[EOS] = 2 * table[first]

  plans = Pair(tmp_path, tokenizer, like_to_end).assert_equal(NEVER)
  assert plans[0].tolist()[: len(NEVER)] == list(NEVER)
