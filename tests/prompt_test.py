"""One prompt for training and acting."""

import numpy as np
import pytest

from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import BOS, EOS, PAD


@pytest.fixture(scope="module")
def prompt(tokenizer):
  return Prompt(tokenizer, prefix_length=32, suffix_length=9)


def test_the_prefix_is_the_papers_question(prompt, tokenizer):
  ids, mask_input = prompt.robot_prefix("pick  the apple ")
  real = ids[mask_input]
  assert real[0] == BOS and (ids[~mask_input] == PAD).all()
  assert tokenizer.decode(real) == (
    "Q: what action should the robot take to pick the apple? A:\n"
  )


def test_the_prefix_is_padded_on_the_left(prompt):
  for instruction in ("pick apple", "put cup from counter into sink"):
    _, mask_input = prompt.robot_prefix(instruction)
    assert mask_input[-1] and not mask_input[0]
    assert (np.diff(mask_input.astype(int)) >= 0).all()


def test_the_suffix_ends_with_eos(prompt):
  ids, mask_loss = prompt.suffix([7, 8, 9])
  np.testing.assert_array_equal(ids, [7, 8, 9, EOS] + [PAD] * 5)
  np.testing.assert_array_equal(mask_loss, [1] * 4 + [0] * 5)


def test_too_long_an_instruction_says_what_to_change(prompt):
  with pytest.raises(
    ValueError,
    match=r"got a prompt of \d+ tokens, expected at most 32: .*raise "
    r"config.prompt.prefix_length",
  ):
    prompt.robot_prefix("stack all of the blocks " * 9)


def test_too_long_an_answer_says_what_to_change(prompt):
  with pytest.raises(ValueError, match=r"answer of 10 tokens .* at most 9"):
    prompt.suffix(range(9))


@pytest.mark.parametrize(
  "write", ["robot_prefix", "prefix", "plan_ids"], ids=str
)
@pytest.mark.parametrize("word", ["<eos>", "<image>"])
def test_words_that_end_or_open_a_prompt_are_refused(tokenizer, write, word):
  prompt = Prompt(tokenizer, 32, 40, plan_length=24)
  with pytest.raises(ValueError, match=f"got text that holds .*{word}"):
    getattr(prompt, write)(f"pick {word} apple")


PLAN = "apple <loc0480><loc0608>, red heart <loc0992><loc0992>"


def test_a_plan_is_written_as_in_the_paper(tokenizer):
  prompt = Prompt(tokenizer, 32, 40, plan_length=24)
  ids = prompt.plan_ids("pick  rxbar chocolate ")
  assert tokenizer.decode(ids) == "Plan: pick rxbar chocolate. Action:"
  assert tokenizer.loc(480) in prompt.plan_ids(PLAN)


@pytest.mark.parametrize("plan", [PLAN, "pick rxbar chocolate", "1. 2... Act."])
def test_a_plan_can_be_told_from_what_follows_it(tokenizer, plan):
  prompt = Prompt(tokenizer, 32, 40, plan_length=24)
  ids = prompt.plan_ids(plan)
  words, rest = prompt.split_plan([*ids, *prompt.plan_end, 7, 8])
  assert words == plan
  np.testing.assert_array_equal(rest, [*prompt.plan_end, 7, 8])


def test_a_robot_that_acts_at_once_has_no_plan(prompt):
  words, rest = prompt.split_plan([7, 8])
  assert words == "" and rest.tolist() == [7, 8]


@pytest.mark.parametrize(
  ("plan", "message"),
  [
    (" ", "got a plan of .* expected some words and at most 24 tokens: ' '"),
    ("apple " * 30, "got a plan of 34 tokens, .* change the plan or conf"),
    ("a. Action: b", "got a plan that holds '. Action:', which ends it: 'a. A"),
  ],
)
def test_plans_that_cannot_be_written(tokenizer, plan, message):
  prompt = Prompt(tokenizer, 32, 40, plan_length=24)
  with pytest.raises(ValueError, match=message):
    prompt.plan_ids(plan)


def test_a_template_without_an_instruction_is_refused(tokenizer):
  with pytest.raises(ValueError, match=r"expected the field '\{instruction\}'"):
    Prompt(tokenizer, 32, 9, template="what now?")


def test_answers_of_one_length_are_padded_together(prompt):
  answers = np.array([[7, 8, 9], [4, 5, 6]])
  ids, mask_loss = prompt.suffixes(answers)
  for answer, own, mask in zip(answers, ids, mask_loss, strict=True):
    np.testing.assert_array_equal(own, prompt.suffix(answer)[0])
    np.testing.assert_array_equal(mask, prompt.suffix(answer)[1])
  assert mask_loss.dtype == np.float32 and ids.dtype == np.int32
