"""Instructions: every template is understood, in every family."""

import numpy as np
import pytest

from rt2_jax.envs.tabletop import instructions
from rt2_jax.envs.tabletop.instructions import FAMILIES, SIDES, Task

NAMES = ("apple", "green apple", "bow and arrow", "number 3", "T-shirt")


def tasks(family):
  if family == "push":
    return [Task(family, "bow and arrow", side=side) for side in SIDES]
  if family.startswith("place"):
    return [Task(family, "green apple", "number 3")]
  return [Task(family, "T-shirt"), Task(family, "green apple")]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_instruction_is_understood(family):
  rng = np.random.default_rng(0)
  for task in tasks(family):
    texts = {instructions.instruct(task, rng) for _ in range(60)}
    assert len(texts) >= 4
    for text in texts:
      assert instructions.parse(text, NAMES) == task, text


def test_without_a_generator_the_words_are_the_plainest():
  task = Task("place_on", "apple", "number 3")
  assert instructions.instruct(task) == "put the apple on the number 3"


def test_a_thing_can_be_described():
  task = Task("place_on", "dog", "number 3")
  text = instructions.instruct(task, reference="two plus one")
  assert text == "put the dog on two plus one"
  text = instructions.instruct(task, target="the one that barks")
  assert text == "put the one that barks on the number 3"


def test_spaces_do_not_matter():
  task = instructions.parse("  pick  up the\napple ", NAMES)
  assert task == Task("pick", "apple")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "pick up the aple",
      "got 'aple' for object of the instruction, expected one of: apple.*did "
      "you mean 'apple'",
    ),
    ("put the apple on the number 33", "got 'number 33' for object.*number 3"),
    ("push the apple to the top", "got 'top' for side, expected one of: left"),
    (
      "dance",
      "got instruction 'dance', expected words such as: move to the.*pass the "
      "task beside",
    ),
  ],
)
def test_what_cannot_be_understood(text, message):
  with pytest.raises(ValueError, match=message):
    instructions.parse(text, NAMES)


def test_an_unknown_family():
  with pytest.raises(ValueError, match="'pik' for task family.*'pick'"):
    instructions.check_family("pik")
