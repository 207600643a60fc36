"""Robot steps as rows of ids, with and without a plan before the action."""

import numpy as np
import pytest

from rt2_jax.action_spaces import RT2, TABLETOP
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.input_pipeline.examples import RobotExamples, open_robot
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ONE_CAMERA, ObservationSpec
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import EOS, PAD
from tests import tiny_datasets

_HERE, _THERE = (0.0, 0.0, 0.1, 0.1), (0.4, 0.55, 0.5, 0.65)


@pytest.fixture
def open_examples(tmp_path, tokenizer):
  actions = ActionTokenizer(TABLETOP, tokenizer.action_route("rare"))
  episodes = [
    tiny_datasets.tabletop_episode("apple", [_HERE, _THERE]),
    tiny_datasets.tabletop_episode("cat", [_THERE], "apple", [_HERE]),
  ]
  folder = tiny_datasets.write(tmp_path, episodes, "tabletop")

  def open_with(
    suffix_length, plan_length, dataset="tabletop_with_plan", max_skipped=0
  ):
    config = SourceConfig(dataset, str(folder))
    prompt = Prompt(tokenizer, 24, suffix_length, plan_length=plan_length)
    source = open_source(config, "train")
    return RobotExamples(source, actions, prompt, max_skipped=max_skipped)

  return open_with


def test_a_plan_and_its_action_are_one_answer(open_examples, tokenizer):
  examples = open_examples(32, 16)
  actions = ActionTokenizer(TABLETOP, tokenizer.action_route("rare"))
  action = actions.encode(examples.recorded_chunks(range(3)))
  for i, plan in enumerate(
    [
      "apple <loc0032><loc0032>",
      "apple <loc0480><loc0608>",
      "cat <loc0480><loc0608>, apple <loc0032><loc0032>",
    ]
  ):
    row = tiny_datasets.row(examples, i, 0, [b""])
    answer = row.suffix[row.mask_loss > 0]
    text = tokenizer.encode(f"Plan: {plan}. Action:")
    np.testing.assert_array_equal(answer, [*text, *action[i], EOS])
    assert (row.suffix[len(answer) :] == PAD).all()


def test_without_plans_the_action_is_the_answer(open_examples, tokenizer):
  examples = open_examples(9, 0, "tabletop")
  row = tiny_datasets.row(examples, 0, 0, [b""])
  actions = ActionTokenizer(TABLETOP, tokenizer.action_route("rare"))
  action = actions.encode(examples.recorded_chunks([0])[0])
  np.testing.assert_array_equal(row.suffix, [*action, EOS])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      (32, 0),
      "tfrecord.*: got data with 3 different plans, expected none with "
      "config.prompt.plan_length = 0; change it, or use another dataset",
    ),
    (
      (32, 16, "tabletop"),
      "got data with 0 different plans, expected some with config.prompt."
      "plan_length = 16",
    ),
    (
      (32, 9),
      r"got a plan of \d+ tokens, expected some words and at most 9 tokens: "
      "'cat <loc.*; change the plan or config.prompt.plan_length",
    ),
    (
      (20, 16),
      r"got an answer of \d+ tokens with eos, expected at most 20; raise "
      "config.prompt.suffix_length",
    ),
  ],
)
def test_plans_that_do_not_fit_the_prompt_stop_a_run(
  open_examples, arguments, message
):
  with pytest.raises(ValueError, match=message):
    open_examples(*arguments)


@pytest.mark.parametrize("lengths", [(32, 9), (22, 16)])
def test_steps_whose_plan_is_too_long_are_left_out(open_examples, lengths):
  """By itself, or together with the action: the one with two things."""
  with pytest.raises(ValueError, match=r"got 1 ex.*= 0: .*, byte \d+: got a"):
    open_examples(*lengths)
  examples = open_examples(*lengths, max_skipped=1)
  assert [examples.source.plan(i) for i in range(len(examples))] == [
    "apple <loc0032><loc0032>",
    "apple <loc0480><loc0608>",
  ]
  (lost,) = examples.skipped
  assert lost.examples == 1


def test_steps_whose_instruction_is_too_long_are_left_out(tmp_path, tokenizer):
  actions = ActionTokenizer(RT2, tokenizer.action_route("rare"))
  long = "stack blocks " * 20
  episodes = [tiny_datasets.bridge_episode(i, length=4) for i in range(4)]
  for episode in episodes[1:3]:
    episode["steps/language_instruction"][2:] = [long.encode()] * 2
  tiny_datasets.write(tmp_path, episodes, num_shards=2)
  config = SourceConfig("bridge_dataset", str(tmp_path))
  spec = ObservationSpec(history=2)
  source = open_source(config, "train", spec)
  prompt = Prompt(tokenizer, 24, 9)
  with pytest.raises(
    ValueError,
    match=r"got 4 ex.* = 3: .*, byte \d+: got a prompt of \d+ tokens, expec.* "
    r"raise config\.prompt\.prefix_length \(4 steps\)",
  ):
    RobotExamples(source, actions, prompt, spec, max_skipped=3)
  examples = RobotExamples(source, actions, prompt, spec, max_skipped=4)
  assert len(examples) == 12 and examples.skipped[0].examples == 4
  kept = [i for i in range(16) if i not in (6, 7, 10, 11)]
  for i, old in enumerate(kept):
    assert examples.requests([i])[0] == source.requests([old])[0]
    assert examples.location(i) == source.location(old)
  row = tiny_datasets.row(examples, 11, 0, [b"", b""])
  np.testing.assert_array_equal(
    row.suffix[:8], actions.encode(source.index.action[15:16])
  )
  with pytest.raises(ValueError, match="got no step that fits the prompt: .*b"):
    RobotExamples(source, actions, Prompt(tokenizer, 4, 9), max_skipped=99)


def test_blank_instructions_are_counted(tmp_path, tokenizer, caplog):
  texts = ["put carrot on plate", " ", ""]
  episodes = [
    tiny_datasets.bridge_episode(i, 2, t) for i, t in enumerate(texts)
  ]
  tiny_datasets.write(tmp_path, episodes)
  actions = ActionTokenizer(RT2, tokenizer.action_route("rare"))
  prompt = Prompt(tokenizer, 24, 9)
  for filters, count in ({}, 6), ({"text_length": [1, 99]}, 2):
    caplog.clear()
    config = SourceConfig("bridge_dataset", str(tmp_path), filters=filters)
    opened = open_robot(config, "train", actions, prompt, ONE_CAMERA, "", 0)
    assert len(opened) == count
    assert ("4 of 6 steps have no instruction" in caplog.text) == (count == 6)


def test_training_holds_36_bytes_of_a_step(tmp_path, tokenizer):
  """Of 68 while a source is opened; the bins replace the numbers."""
  folder = tiny_datasets.write(
    tmp_path, [tiny_datasets.bridge_episode(0, length=40)]
  )
  config = SourceConfig("bridge_dataset", str(folder))
  actions = ActionTokenizer(RT2, tokenizer.action_route("rare"))
  opened = [
    open_robot(
      config,
      "train",
      actions,
      Prompt(tokenizer, 24, 9),
      ONE_CAMERA,
      "",
      0,
      keep_numbers=keep,
    )
    for keep in (True, False)
  ]
  assert [each.nbytes for each in opened] == [40 * n + 12 for n in (68, 36)]
  whole, lean = opened
  assert whole.source.fingerprint == lean.source.fingerprint
  steps, data = np.arange(40), [[b""]] * 40
  for one, other in zip(
    whole.rows(steps, steps, data), lean.rows(steps, steps, data), strict=True
  ):
    np.testing.assert_array_equal(one, other)
