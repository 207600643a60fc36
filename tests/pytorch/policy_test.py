"""The same folder, the same picture, the same words: the same action."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rt2_jax import augment
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.errors import UserError
from rt2_jax.observation import ObservationSpec, from_images
from rt2_jax.policy import Policy
from rt2_jax.prompt import Prompt
from rt2_jax.pytorch.policy import TorchPolicy
from rt2_jax.weights import export
from tests import tiny_models
from tests.layers_test import loaded_by


def both(folder, tokenizer, decoder, route="rare", num_images=1, plan_length=0):
  """A policy in JAX, and what its export is in PyTorch."""
  config = tiny_models.config(decoder, tokenizer.vocab_size, num_images)
  params = tiny_models.params(config)
  meta = tiny_models.meta(config, tokenizer, route)
  meta["prompt"]["plan_length"] = plan_length
  export.to_huggingface(params, config, meta, tokenizer.model, folder)
  actions = ActionTokenizer.from_dict(meta["action_tokenizers"]["kitchen"])
  prompt = Prompt(tokenizer, **meta["prompt"])
  spec = ObservationSpec(history=num_images)
  ours = Policy(config, params, prompt, actions, spec)
  return ours, TorchPolicy.from_folder(folder)


@pytest.fixture(scope="module")
def images():
  """Patches of colour: noise would look grey to the model."""
  random = np.random.default_rng(0)
  coarse = random.integers(0, 256, (100, 2, 4, 5, 3), np.uint8)
  return coarse.repeat(12, axis=2).repeat(12, axis=3)


INSTRUCTIONS = [
  f"pick {word} {i}" for i in range(50) for word in ("can", "cup")
]


@pytest.mark.parametrize("decoder", ["gemma1", "gemma2"])
def test_a_hundred_actions_are_equal(tmp_path, tokenizer, images, decoder):
  ours, theirs = both(tmp_path, tokenizer, decoder, num_images=2)
  seen = from_images(images, INSTRUCTIONS)
  ids = ours.token_ids(seen)
  assert len(np.unique(ids)) > 20  # they are no constant
  np.testing.assert_array_equal(theirs.token_ids(seen), ids)
  np.testing.assert_array_equal(
    theirs(images[:5], INSTRUCTIONS[:5]), ours(images[:5], INSTRUCTIONS[:5])
  )


def test_one_robot_and_its_action(tmp_path, tokenizer, images):
  ours, theirs = both(tmp_path, tokenizer, "gemma1")
  action = theirs(images[0, 0], INSTRUCTIONS[0])
  assert action.shape == (8,) and action.dtype == np.float32
  np.testing.assert_array_equal(action, ours(images[0, 0], INSTRUCTIONS[0]))
  assert theirs.action_space == ours.action_space


def test_answers_to_questions_are_equal(tmp_path, tokenizer, images):
  ours, theirs = both(tmp_path, tokenizer, "gemma2")
  questions = [f"Answer in en: what is {i}?" for i in range(12)]
  answers = ours.answer(images[:12, 0], questions)
  assert len(set(answers)) > 2
  assert theirs.answer(images[:12, 0], questions) == answers
  assert theirs.answer(images[:0, 0], []) == ()


def test_answers_of_any_length(tmp_path, tokenizer, images):
  """Digits as text: the grammar has states, and answers end with eos."""
  ours, theirs = both(tmp_path, tokenizer, "gemma2", "integers")
  np.testing.assert_array_equal(
    theirs(images[:20, 0], INSTRUCTIONS[:20]),
    ours(images[:20, 0], INSTRUCTIONS[:20]),
  )


@pytest.mark.parametrize("decoder", ["gemma1", "gemma2"])
def test_plans_and_what_follows_them_are_equal(
  tmp_path, tokenizer, images, decoder
):
  ours, theirs = both(tmp_path, tokenizer, decoder, plan_length=6)
  seen = tiny_models.observations(images[:40, :1], INSTRUCTIONS[:40])
  plans, actions = ours.plan_and_act(seen)
  assert len(set(plans)) > 5 and len(np.unique(actions)) > 20
  found, found_actions = theirs.plan_and_act(seen)
  assert found == plans
  np.testing.assert_array_equal(found_actions, actions)
  np.testing.assert_array_equal(theirs.act(seen), actions)


def test_a_policy_without_plans_has_none(tmp_path, tokenizer, images):
  _, theirs = both(tmp_path, tokenizer, "gemma1")
  seen = tiny_models.observations(images[:2, :1], INSTRUCTIONS[:2])
  plans, actions = theirs.plan_and_act(seen)
  assert plans == ("", "") and actions.shape == (2, 1, 8)


@pytest.mark.parametrize("shape", [(48, 60), (240, 320), (20, 32), (32, 9)])
def test_the_image_path_is_the_same(tmp_path, tokenizer, shape):
  _, theirs = both(tmp_path, tokenizer, "gemma1")
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (2, 1, *shape, 3), np.uint8)
  for size in (None, np.array([[[shape[0] - 3, 9]], [[8, shape[1]]]])):
    got = theirs.prepare(images, 2, size).numpy().transpose(0, 2, 3, 1)
    expected = augment.prepare(images, 32, size)[:, 0]
    assert np.abs(got - expected).max() < 1e-6


@pytest.mark.parametrize(
  "change",
  [
    lambda x: x[:, :1],
    lambda x: x.astype(np.float32) / 255,
    lambda x: x[:2],
    lambda x: x[..., :1],
  ],
)
def test_other_images_are_refused(tmp_path, tokenizer, images, change):
  _, theirs = both(tmp_path, tokenizer, "gemma1", num_images=2)
  with pytest.raises(
    ValueError, match=r"for 3 instructions, expected uint8\[2, H, W, 3\]"
  ):
    theirs(change(images[:3]), INSTRUCTIONS[:3])


def test_a_batch_of_no_robots_gets_no_actions(tmp_path, tokenizer, images):
  ours, theirs = both(tmp_path, tokenizer, "gemma1", "integers")
  for policy in (ours, theirs):
    action = policy(images[:0, 0], [])
    assert action.shape == (0, 8) and action.dtype == np.float32
    plans, actions = policy.plan_and_act([])
    assert plans == () and actions.shape == (0, 1, 8)


@pytest.mark.parametrize("plan_length", [0, 6])
def test_logits_that_are_not_finite_are_no_action(
  tmp_path, tokenizer, images, plan_length
):
  _, theirs = both(tmp_path, tokenizer, "gemma1", plan_length=plan_length)
  with torch.no_grad():
    theirs.model.model.language_model.norm.weight[3] = torch.nan
  with pytest.raises(UserError, match="not finite .* for 2 of 2 examples"):
    theirs(images[:2, 0], INSTRUCTIONS[:2])


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"up_proj": None}, "with 3 tensors .* missing and 0 .*up_proj.weight"),
    ({"up_proj": "up_proj.base_layer"}, "with 3 tensors .* and 3 that it does"),
  ],
)
def test_weights_that_transformers_would_draw_are_refused(
  tmp_path, tokenizer, changed, message
):
  both(tmp_path, tokenizer, "gemma1")
  file = tmp_path / "model.safetensors"
  ((part, other),) = changed.items()
  kept = {
    name.replace(part, other or ""): tensor
    for name, tensor in load_file(file).items()
    if other or part not in name
  }
  save_file(kept, file, {"format": "pt"})
  with pytest.raises(UserError, match=message):
    TorchPolicy.from_folder(tmp_path)
  file.write_bytes(file.read_bytes()[:-9])
  with pytest.raises(UserError, match="cannot load .*; copy it again"):
    TorchPolicy.from_folder(tmp_path)
  file.unlink()
  with pytest.raises(UserError, match="cannot load .*; copy it again"):
    TorchPolicy.from_folder(tmp_path)


def test_folders_and_sources_are_named(tmp_path, tokenizer):
  with pytest.raises(ValueError, match=r"without rt2\.json, expected a folder"):
    TorchPolicy.from_folder(tmp_path)
  both(tmp_path, tokenizer, "gemma1")
  with pytest.raises(ValueError, match="expected one of: kitchen; did you"):
    TorchPolicy.from_folder(tmp_path, "kitchens")
  robot = json.loads((tmp_path / "rt2.json").read_text())
  robot["action_tokenizers"]["table"] = robot["action_tokenizers"]["kitchen"]
  (tmp_path / "rt2.json").write_text(json.dumps(robot))
  with pytest.raises(ValueError, match="expected one of: kitchen, table"):
    TorchPolicy.from_folder(tmp_path)
  (tmp_path / "rt2.json").write_text('{"format": 2')
  with pytest.raises(UserError, match="not a whole JSON file .* copy it again"):
    TorchPolicy.from_folder(tmp_path)


def test_needs_no_jax():
  loaded = loaded_by("rt2_jax.pytorch.policy")
  assert not {"jax", "flax", "orbax", "tensorflow"} & loaded
