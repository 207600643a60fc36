"""The proof of a conversion: what it refuses."""

import json

import numpy as np
import pytest
import transformers

from rt2_jax.action_spaces import LANGUAGE_TABLE, RT2, TABLETOP
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.prompt import Prompt
from rt2_jax.weights import (
  agreement,
  hf_config,
  hf_processor,
  processor_agreement,
)
from rt2_jax.weights.agreement import Outputs
from tests import tiny_models


def outputs(**changes) -> Outputs:
  random = np.random.default_rng(0)
  fields = {
    "image_tokens": random.standard_normal((2, 3, 4)),
    "logits": random.standard_normal((2, 5, 6)),
    "action_ids": (np.arange(16).reshape(2, 8),),
    "answer_ids": np.arange(8).reshape(2, 4),
  }
  return Outputs(**fields | changes)


def test_equal_outputs_agree():
  result = agreement.compare(outputs(), outputs())
  assert result.holds and result.logits == 0.0
  assert (result.same_actions, result.actions) == (2, 2)
  assert (result.same_answers, result.answers) == (2, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["image_tokens", "logits"])
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_what_is_not_finite_agrees_with_nothing(bad, name, sides):
  """Not even with itself, nor where weights were rounded."""
  broken = np.array(getattr(outputs(), name))
  broken[0, 0] = bad
  pair = [outputs(**{name: broken}) if s else outputs() for s in sides]
  with np.errstate(invalid="ignore"):
    assert not agreement.compare(*pair).holds
    result = agreement.compare(*pair, rounding=1e-3)
  assert not result.holds and "NaN or infinity" in str(result)


def test_other_tokens_agree_only_where_weights_were_rounded():
  other = outputs(answer_ids=np.zeros((2, 4), int))
  assert not agreement.compare(outputs(), other).holds
  assert agreement.compare(outputs(), other, rounding=2**-9).holds
  assert not agreement.compare(outputs(), outputs(), rounding=0.01).holds


def test_the_largest_rounding_is_bfloat16s():
  params = {"w": np.array([1.0, 1.0 + 2**-8, -3e-30, 0.0], np.float32)}
  rounded = {"w": params["w"].astype("bfloat16")}
  found = agreement.largest_rounding(params, rounded)
  assert 2**-9 < found <= agreement.ROUNDING == 2**-8
  assert agreement.largest_rounding(rounded, rounded) == 0.0


def test_one_source_proves_each_way_of_writing_actions(tokenizer):
  route = tokenizer.action_route("rare")
  spaces = {"kitchen": RT2, "table": TABLETOP, "board": LANGUAGE_TABLE}
  stored = {
    name: ActionTokenizer(space, route).to_dict()
    for name, space in spaces.items()
  }
  assert agreement.sources(stored) == ["kitchen", "board"]
  assert agreement.sources({}) == [None]


@pytest.fixture
def folder(tmp_path, tokenizer):
  """What AutoProcessor reads of an exported folder."""
  config = tiny_models.config("gemma1", tokenizer.vocab_size)
  hf_processor.write(tokenizer.model, config.img, tmp_path)
  fields = hf_config.to_config(config, "float32")
  (tmp_path / "config.json").write_text(json.dumps(fields))
  return tmp_path


def compared(folder, tokenizer, num_images=1):
  auto = transformers.AutoProcessor.from_pretrained(folder)
  img = tiny_models.config("gemma1", tokenizer.vocab_size).img
  prompt = Prompt(tokenizer, 40, 9)
  return processor_agreement.compare(auto, prompt, img, num_images)


@pytest.mark.parametrize("num_images", [1, 2])
def test_the_folders_own_processor_agrees(folder, tokenizer, num_images):
  result = compared(folder, tokenizer, num_images)
  assert result.holds and result.texts > 300, result
  assert 0.0 < result.resized <= 2.0 and result.untouched < 1e-6


@pytest.mark.parametrize(
  ("file", "field", "value", "message"),
  [
    ("preprocessor_config.json", "resample", 0, "grey levels where"),
    ("preprocessor_config.json", "image_mean", [0.48] * 3, "of [-1, 1]"),
    ("tokenizer.json", "normalizer", None, "other ids for 'Q: what"),
  ],
)
def test_a_processor_that_was_changed_does_not(
  folder, tokenizer, file, field, value, message
):
  fields = json.loads((folder / file).read_text())
  fields[field] = value
  (folder / file).write_text(json.dumps(fields))
  result = compared(folder, tokenizer)
  assert not result.holds and message in str(result)
