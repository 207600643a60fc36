"""Descriptions of checkpoints of every released format."""

import dataclasses
import json

import numpy as np
import pytest

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.checkpoint_meta import FORMAT, CheckpointMeta
from rt2_jax.errors import UserError
from rt2_jax.observation import ObservationSpec
from rt2_jax.policy import Policy
from tests import tiny_models
from tests.conftest import ROOT

STORED = ROOT / "tests/released"


@pytest.fixture
def meta(tokenizer):
  config = tiny_models.config("gemma1", tokenizer.vocab_size, num_images=2)
  return CheckpointMeta.from_dict(tiny_models.meta(config, tokenizer))


def test_a_description_survives_its_json(meta):
  spec = ObservationSpec(("primary", "wrist"), ("wrist",), 2)
  chunk = dataclasses.replace(meta.action_tokenizers["kitchen"], horizon=3)
  meta = dataclasses.replace(
    meta,
    observations={"kitchen": spec},
    action_tokenizers={"kitchen": chunk},
    data={"kitchen": {"length": 3, "fingerprint": "f"}},
  )
  text = json.dumps(meta.to_dict())
  assert CheckpointMeta.from_dict(json.loads(text)) == meta


def test_a_checkpoint_of_format_1_acts_as_it_did():
  """It was saved by the last release that wrote format 1: two frames."""
  folder = STORED / "format_1"
  policy = Policy.from_checkpoint(folder)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 2, 12, 20, 3), np.uint8)
  actions = policy(images, ["pick apple", "stop", "open drawer"])
  expected = json.loads((folder / "actions.json").read_text())
  np.testing.assert_array_equal(actions, np.float32(expected))
  assert policy.observation == ObservationSpec(history=2)
  # As today's configs describe it, so that its run can go on.
  stored, _ = Checkpoints.open_run(folder).restore_meta()
  found = CheckpointMeta.from_dict(stored)
  assert found.format == FORMAT and found.model.num_images == 2
  (tokenizer,) = found.action_tokenizers.values()
  dimensions = tokenizer.space.dimensions
  assert [d.at_end for d in dimensions] == [1.0, *[0.0] * 6, None]
  again = CheckpointMeta.from_dict(found.to_dict())
  assert again == found
  assert ActionTokenizer.from_dict(tokenizer.to_dict()) == tokenizer


def test_a_newer_format_is_refused(meta):
  with pytest.raises(UserError, match=f"format 99, expected at most {FORMAT}"):
    CheckpointMeta.from_dict(meta.to_dict() | {"format": 99})


def test_the_robot_of_a_source(meta):
  tokenizer, spec = meta.robot(None)
  assert tokenizer == meta.action_tokenizers["kitchen"] and spec.history == 2
  assert meta.robot("kitchen") == (tokenizer, spec)
  with pytest.raises(UserError, match="'table'.*expected one of: kitchen"):
    meta.robot("table")
  answers = dataclasses.replace(meta, action_tokenizers={}, observations={})
  assert answers.robot(None) == (None, meta.observation)
