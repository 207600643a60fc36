"""Fields of a source: its own prompt, horizon, weight and augmentation."""

import jax
import numpy as np
import pytest

from configs import bridge_debug
from rt2_jax import sharding
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.errors import UserError
from rt2_jax.train_config import TrainConfig, with_defaults
from rt2_jax.train_data import make_loader
from rt2_jax.training import make_meta
from tests import tiny_datasets
from tests.conftest import ROOT


@pytest.fixture
def fields(tmp_path):
  """Two robot sources of 15 and 60 steps."""
  fields = bridge_debug.get_config().to_dict()
  fields["tokenizer_file"] = str(ROOT / "data/small_tokenizer.model")
  fields["prompt"] = {"prefix_length": 32, "suffix_length": 20}
  fields["batch_size"] = 8
  fields["sources"] = {}
  for name, count in ("few", 3), ("many", 12):
    source = tiny_datasets.bridge_source(tmp_path / name, count)
    fields["sources"][name] = {"dataset": source.dataset, "path": source.path}
  return fields


@pytest.mark.parametrize(
  ("few", "many", "weights"),
  [
    ({}, {}, (0.5, 0.5)),
    ({"weight": 3.0}, {}, (0.75, 0.25)),
    ({"weight_by": "size"}, {"weight_by": "size"}, (0.2, 0.8)),
    ({"weight_by": "root_size"}, {"weight_by": "root_size"}, (1 / 3, 2 / 3)),
    (
      {"weight_by": "size", "weight": 4.0},
      {"weight_by": "size"},
      (0.5, 0.5),
    ),
  ],
)
def test_weights_may_follow_the_sizes(fields, few, many, weights):
  fields["sources"]["few"] |= few
  fields["sources"]["many"] |= many
  config = TrainConfig.from_dict(fields)
  np.testing.assert_allclose(config.weights([15, 60]), weights)


def test_an_unknown_rule_of_weights_is_named(fields):
  fields["sources"]["few"]["weight_by"] = "sise"
  with pytest.raises(UserError, match="'sise' for weight_by.*did you mean"):
    TrainConfig.from_dict(fields).weights([15, 60])


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("sources", None, "config.sources = None, expected {NAME: {…}"),
    ("web", ["shard"], "config.web = .'shard'., expected {NAME: {…}"),
    ("sources", {"few": "data"}, "config.sources.few = 'data', .*dataset"),
    ("optimizer", 3e-4, "config.optimizer = 0.0003, expected .*learning_rate"),
    ("loader", None, "config.loader = None, expected .*num_threads"),
    ("mesh", {"fsdp": "2"}, "config.mesh.fsdp = '2', expected a number"),
    ("mesh", {"data": -2, "fsdp": -4}, "config.mesh.data = -2, expected"),
  ],
)
def test_values_of_another_kind_are_named(fields, name, value, message):
  with pytest.raises(UserError, match=message):
    TrainConfig.from_dict(with_defaults(fields | {name: value}))
  with pytest.raises(UserError, match=message):
    TrainConfig.from_dict(fields | {name: value})


def test_sources_have_prompts_and_horizons_of_their_own(fields, tokenizer):
  template = "In: move to {instruction}\nOut:"
  fields["sources"]["few"] |= {"template": template, "horizon": 2}
  config = TrainConfig.from_dict(fields)
  actions = config.action_tokenizers()
  assert [actions[name].horizon for name in ("few", "many")] == [2, 1]
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  batch = next(make_loader(config, actions, mesh).batches(0, 1))
  asked = {
    (s, tokenizer.decode(row[mask]), int(loss.sum()))
    for s, row, mask, loss in zip(
      batch.source, batch.prefix, batch.mask_input, batch.mask_loss, strict=True
    )
  }
  assert asked == {
    (0, "In: move to put carrot on plate\nOut:\n", 2 * 8 + 1),
    (1, "Q: what action should the robot take to put carrot on plate? A:\n", 9),
  }
  meta = make_meta(config, fields, actions, {}).to_dict()
  stored = CheckpointMeta.from_dict(meta)
  for name in ("few", "many"):
    prompt = stored.make_prompt(config.tokenizer, name)
    assert prompt == config.make_prompt(name)
  del meta["prompts"]  # as checkpoints of before had none
  plain = CheckpointMeta.from_dict(meta).make_prompt(config.tokenizer, "few")
  assert plain == config.make_prompt("many")


def test_a_template_of_a_source_has_the_models_fields(fields):
  fields["sources"]["few"]["template"] = "{instruction} at {state}"
  with pytest.raises(UserError, match=r"state = False .*'\{instruction\} at"):
    TrainConfig.from_dict(fields)


@pytest.mark.parametrize("unknown", ["{task}", "{}", "{state} or {state}"])
def test_a_field_that_nothing_fills_is_named(fields, unknown):
  fields["sources"]["few"]["template"] = f"{{instruction}} at {unknown}"
  with pytest.raises(UserError, match=rf"got fields .*{unknown[-2:]} in the"):
    TrainConfig.from_dict(fields)


def test_a_run_may_hide_tokens_of_actions(fields):
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  trainer = TrainConfig.from_dict(fields).make_trainer({}, mesh)
  assert trainer.masked_fraction == 0.0
  fields["actions"] = {"masked_fraction": 0.2}
  trainer = TrainConfig.from_dict(fields).make_trainer({}, mesh)
  assert trainer.masked_fraction == 0.2


def test_a_source_may_be_augmented_less(fields):
  config = TrainConfig.from_dict(fields)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  assert config.make_trainer({}, mesh).fractions == (1.0, 1.0)
  fields["sources"]["many"]["augmentation"] = 0.25
  config = TrainConfig.from_dict(fields)
  assert config.make_trainer({}, mesh).fractions == (1.0, 0.25)
