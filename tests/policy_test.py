"""A policy is its checkpoint: nothing else is needed, nothing else is used."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax import augment, held_params, sharding, trees
from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.checkpoint_meta import FORMAT
from rt2_jax.errors import UserError
from rt2_jax.evaluators import action_accuracy
from rt2_jax.models import variants
from rt2_jax.models.vlm import VLM, init_params
from rt2_jax.observation import ObservationSpec, from_images
from rt2_jax.policy import Policy
from rt2_jax.prompt import ROBOT_TEMPLATE
from tests import tiny_models

INSTRUCTIONS = ["put carrot on plate", "pick apple", "open top drawer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
  return checkpoint(tmp_path_factory.mktemp("run"), tokenizer, "float32")


def checkpoint(folder, tokenizer, dtype, **prompt):
  """Of a random model with two robot sources and two frames."""
  model = variants.vlm(
    "tiny/16",
    "gemma_tiny",
    image_size=32,
    vocab_size=tokenizer.vocab_size,
    dtype=dtype,
  )
  model = dataclasses.replace(model, num_images=2)
  params = init_params(model, jax.random.key(0))
  route = tokenizer.action_route("rare")
  dx = RT2.dimensions[1]
  narrow = RT2.with_bounds({"dx": (dx.low / 100, dx.high / 100)})
  actions = {
    "kitchen": ActionTokenizer(RT2, route),
    "table": ActionTokenizer(narrow, route),
  }
  spec = ObservationSpec(history=2).to_dict()
  meta = {
    "model": dataclasses.asdict(model),
    "config": {},
    "versions": {},
    "prompt": {
      "prefix_length": 24,
      "suffix_length": 9,
      "template": ROBOT_TEMPLATE,
      **prompt,
    },
    "action_tokenizers": {name: t.to_dict() for name, t in actions.items()},
    "observation": spec,
    "observations": dict.fromkeys(actions, spec),
    "tokenizer_sha256": tokenizer.sha256,
    "format": FORMAT,
    "statistics": {},
    "data": {},
  }
  checkpoints = Checkpoints(folder / "checkpoints")
  checkpoints.save(7, params, {"count": params}, meta, tokenizer.model)
  checkpoints.close()
  return folder


@pytest.fixture(scope="module")
def policy(folder):
  return Policy.from_checkpoint(folder, "table")


def test_robots_whose_bounds_differ_share_one_program(folder, policy, images):
  kitchen = Policy.from_checkpoint(folder, "kitchen")
  at_table = policy(images, INSTRUCTIONS)
  events = []

  def listen(event, *_, **__):
    events.append(event.rpartition("/")[2])

  jax.monitoring.register_event_duration_secs_listener(listen)
  in_kitchen = kitchen(images, INSTRUCTIONS)
  assert "backend_compile_duration" not in events
  kitchen(images[:1], INSTRUCTIONS[:1])
  assert "backend_compile_duration" in events  # that is what it is called
  jax.monitoring.unregister_event_duration_listener(listen)
  # The same bins, 100 times as far apart.
  np.testing.assert_allclose(in_kitchen[:, 1], 100 * at_table[:, 1], rtol=1e-5)
  np.testing.assert_array_equal(in_kitchen[:, 2:], at_table[:, 2:])


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (3, 2, 48, 64, 3), np.uint8)


def test_one_image_one_action(policy, images):
  action = policy(images[0], INSTRUCTIONS[0])
  assert action.shape == (8,) and action.dtype == np.float32
  assert np.abs(action[1]) <= 0.0101  # the bounds of this source


def test_weights_are_held_as_products_read_them(tmp_path, tokenizer, images):
  """A policy of half the memory gives the same logits, bit for bit."""
  folder = checkpoint(tmp_path, tokenizer, "bfloat16")
  policy = Policy.from_checkpoint(folder, "table")
  kept = trees.flatten(policy.params)
  assert kept["llm/layers/mlp/linear"].dtype == "bfloat16"
  assert kept["llm/final_norm/scale"].dtype == "float32"
  whole = init_params(policy.model, jax.random.key(0))
  seen = from_images(images, INSTRUCTIONS)
  prefix, mask_input = policy.prompts(seen)
  suffix = np.ones((3, 9), np.int32)
  prepared = augment.prepare(images, policy.model.img.image_size)
  arguments = (prepared, prefix, mask_input, suffix)
  apply = jax.jit(VLM(policy.model).apply)
  np.testing.assert_array_equal(
    apply({"params": policy.params}, *arguments),
    apply({"params": whole}, *arguments),
  )


def test_a_policy_with_layers_apart_acts_alike(
  folder, policy, images, monkeypatch
):
  """As on a GPU; also with matrices of 8 bits."""
  monkeypatch.setattr(held_params, "_LAYERS_APART", ("cpu",))
  apart = Policy.from_checkpoint(folder, "table")
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
  spread = Policy.from_checkpoint(folder, "table", mesh=mesh)
  for one in (apart, spread):
    assert isinstance(trees.flatten(one.params)["llm/layers/mlp/linear"], list)
  pairs = (policy, apart), (policy, spread), (policy.in_int8(), apart.in_int8())
  for expected, got in pairs:
    np.testing.assert_array_equal(
      got(images, INSTRUCTIONS), expected(images, INSTRUCTIONS)
    )
  assert apart.answer(images, INSTRUCTIONS) == policy.answer(
    images, INSTRUCTIONS
  )


def test_a_batch_is_its_rows(policy, images):
  together = policy(images, INSTRUCTIONS)
  assert together.shape == (3, 8)
  for b in range(3):
    np.testing.assert_array_equal(
      policy(images[b], INSTRUCTIONS[b]), together[b]
    )


def test_a_policy_on_a_mesh_acts_alike(folder, policy, images):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
  spread = Policy.from_checkpoint(folder, "table", mesh=mesh)
  kernel = spread.params["llm"]["layers"]["mlp"]["linear"]
  assert not kernel.sharding.is_fully_replicated
  np.testing.assert_array_equal(
    spread.token_ids(from_images(images, INSTRUCTIONS)),
    policy.token_ids(from_images(images, INSTRUCTIONS)),
  )


def test_sources_share_tokens_and_differ_in_bounds(folder, policy, images):
  kitchen = Policy.from_checkpoint(folder, "kitchen")
  np.testing.assert_array_equal(
    kitchen.token_ids(from_images(images, INSTRUCTIONS)),
    policy.token_ids(from_images(images, INSTRUCTIONS)),
  )
  wide, narrow = kitchen(images, INSTRUCTIONS), policy(images, INSTRUCTIONS)
  np.testing.assert_allclose(wide[:, 1] / 100, narrow[:, 1], atol=1e-6)


def test_the_source_must_be_named_when_there_are_two(folder):
  for source in (None, "tables"):
    with pytest.raises(ValueError, match="expected one of: kitchen, table"):
      Policy.from_checkpoint(folder, source)


@pytest.mark.parametrize(
  "change",
  [
    lambda x: x[:, 0],
    lambda x: x[:, :1],
    lambda x: x.astype(np.float32) / 255,
    lambda x: x[:2],
    lambda x: x[..., :1],
  ],
)
def test_other_images_are_refused(policy, images, change):
  with pytest.raises(
    ValueError, match=r"for 3 instructions, expected uint8\[2, H, W, 3\]"
  ):
    policy(change(images), INSTRUCTIONS)


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 2, 48, 64, 3), np.uint8)])
def test_a_batch_of_no_robots_gets_no_actions(policy, thinking, nothing):
  for one in (policy, Policy.from_checkpoint(thinking, "table")):
    assert one(nothing, []).shape == (0, 8)
    assert one(nothing, []).dtype == np.float32
    plans, actions = one.plan_and_act([])
    assert plans == () and actions.shape == (0, 1, 8)
    assert one.act([]).shape == (0, 1, 8)
    assert one.answer(nothing, []) == ()
    prompts = np.zeros((0, 24), np.int32), np.zeros((0, 24), bool)
    assert one.forced_ids(nothing, None, prompts, np.zeros((0, 9))).shape == (
      0,
      9,
    )


@pytest.mark.parametrize(
  "sides", [(0, 0), (0, 64), (48, 0), (7, 64), (8, 9000)]
)
def test_an_image_of_no_likely_size_is_refused(policy, sides):
  images = np.zeros((1, 2, *sides, 3), np.uint8)
  for ask in (policy, policy.answer):
    with pytest.raises(UserError) as error:
      ask(images, ["pick apple"])
    assert f"{sides[0]} x {sides[1]} pixels" in str(error.value)


def test_images_and_texts_that_do_not_make_a_batch(policy, images):
  with pytest.raises(UserError, match="got 3 images and no text, expected 3"):
    policy(images, [])
  with pytest.raises(UserError, match="uint8.0, 2, 48, 64, 3. for 3 instruct"):
    policy(images[:0], INSTRUCTIONS)
  with pytest.raises(UserError, match="the text 'what is it.' for a batch"):
    policy.answer(images, "what is it?")
  mixed = [images[0], images[1][:, :40], images[2]]
  with pytest.raises(UserError, match=r"\(2, 40, 64, 3\), \(2, 48, 64, 3\)"):
    policy(mixed, INSTRUCTIONS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_no_action(policy, images, bad):
  """The argmax of NaN is bin 0: terminate, every motion at its minimum."""
  flat = trees.flatten(policy.params)
  name = "llm/final_norm/scale"
  flat = flat | {name: jnp.asarray(flat[name]).at[3].set(bad)}
  broken = copy.copy(policy)
  broken.params = trees.unflatten(flat)
  suffix = np.ones((3, 9), np.int32)
  seen = from_images(images, INSTRUCTIONS)
  prompts = policy.prompts(seen)
  for ask in (
    lambda: broken(images, INSTRUCTIONS),
    lambda: broken.token_ids(seen),
    lambda: broken.act(tiny_models.observations(images, INSTRUCTIONS)),
    lambda: broken.answer(images, ["what is it?"] * 3),
    lambda: broken.forced_ids(images, None, prompts, suffix),
  ):
    with pytest.raises(UserError, match="not finite .* for 3 of 3 examples"):
      ask()


def test_too_long_an_instruction_is_refused(policy, images):
  with pytest.raises(ValueError, match="got a prompt of .* at most 24"):
    policy(images[0], "pick the apple and " * 10)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory, tokenizer):
  folder = tmp_path_factory.mktemp("thinking")
  return checkpoint(folder, tokenizer, "float32", plan_length=6)


def test_a_policy_that_thinks_first(thinking, images):
  policy = Policy.from_checkpoint(thinking, "table")
  seen = from_images(images, INSTRUCTIONS)
  ids = policy._decode(seen, policy._draft_ids(seen, None)).plans
  end = policy.prompt.plan_end
  assert ids.shape == (3, 6 + len(end))
  np.testing.assert_array_equal(ids[:, 6:], [end] * 3)  # it never ends itself
  seen = tiny_models.observations(images, INSTRUCTIONS)
  plans, chunks = policy.plan_and_act(seen)
  actions = chunks[:, 0]
  words = policy.prompt.tokenizer.decode
  assert plans == tuple(words(row[:6]).strip() for row in ids)
  assert actions.shape == (3, 8) and (np.abs(actions[:, 1]) <= 0.0101).all()
  np.testing.assert_array_equal(policy(images, INSTRUCTIONS), actions)
  one = policy(images[1], INSTRUCTIONS[1])
  np.testing.assert_array_equal(one, actions[1])
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
  spread = Policy.from_checkpoint(thinking, "table", mesh=mesh)
  again, same = spread.plan_and_act(seen)
  assert again == plans
  np.testing.assert_array_equal(same, chunks)
  policy.params = jax.tree.map(lambda x: x * jnp.nan, policy.params)
  with pytest.raises(UserError, match="not finite"):
    policy.plan_and_act(seen)


def test_a_policy_that_acts_at_once_has_no_plan(policy, images):
  seen = tiny_models.observations(images, INSTRUCTIONS)
  plans, chunks = policy.plan_and_act(seen)
  assert plans == ("", "", "")
  np.testing.assert_array_equal(policy.act(seen), chunks)
  np.testing.assert_array_equal(chunks[:, 0], policy(images, INSTRUCTIONS))


def test_accuracy_of_a_policy_that_thinks_first(thinking, images):
  policy = Policy.from_checkpoint(thinking, "table")
  actions = policy(images, INSTRUCTIONS)
  call = from_images(images, INSTRUCTIONS), actions[:, None]
  result = action_accuracy.evaluate(policy, [call])
  assert result.near == 1.0 and result.forced is None
  assert "no token accuracy" in str(result) and "nan" not in str(result)


def test_accuracy_of_a_policy_against_itself(policy, images):
  """Recorded = what it would do: every figure is perfect."""
  actions = policy(images, INSTRUCTIONS)
  call = from_images(images, INSTRUCTIONS), actions[:, None]
  result = action_accuracy.evaluate(policy, [call])
  metrics = result.metrics()
  assert result.near == 1.0 and metrics["l1/dx"] == 0.0
  assert metrics["decoded_accuracy/gripper"] == 1.0
