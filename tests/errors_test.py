"""Messages: what they say, and that a program ends in nothing else."""

import json

import pytest

from rt2_jax.action_spaces import RT2
from rt2_jax.errors import (
  EXPLAINED,
  UserError,
  ends_in_one_message,
  unknown_name,
)
from tests.conftest import ROOT


def test_an_unknown_name_lists_the_known_ones():
  error = unknown_name("colour", "gren", ["red", "green"])
  assert str(error) == (
    "got 'gren' for colour, expected one of: red, green; did you mean 'green'?"
  )


def test_a_very_long_name_is_cut():
  assert len(str(unknown_name("colour", "g" * 10_000, ["green"]))) < 600


def test_a_users_mistake_ends_in_its_message():
  @ends_in_one_message
  def main(argv):
    RT2.index(argv[0])

  main(["dx"])
  with pytest.raises(SystemExit, match="^got 'dxx' for dimension of action sp"):
    main(["dxx"])


def test_a_file_that_may_not_be_opened_is_named():
  @ends_in_one_message
  def main(argv):
    raise PermissionError(13, "Permission denied", *argv)

  with pytest.raises(SystemExit, match="^got 'data/x.tfrecord', which this us"):
    main(["data/x.tfrecord"])
  with pytest.raises(PermissionError):
    main([])


@pytest.mark.parametrize("page", EXPLAINED)
def test_a_message_ends_with_the_page_that_explains_it(page):
  text = (ROOT / page).read_text()
  for words in EXPLAINED[page]:
    assert f"`{words}" in text  # as the page quotes it

    @ends_in_one_message
    def main(argv, words=words):
      raise UserError(f"got x, {words} y")

    with pytest.raises(SystemExit) as error:
      main([])
    message, more = error.value.code.splitlines()
    assert message == f"got x, {words} y" and more.endswith(f" {page}")


@pytest.mark.parametrize(
  "bug, message",
  [
    (lambda: json.loads("{["), "Expecting property name"),
    (lambda: list(zip([1, 2], [1], strict=True)), "zip"),  # a frame of ours
  ],
)
def test_any_other_error_keeps_its_traceback(bug, message):
  with pytest.raises(ValueError, match=message):
    ends_in_one_message(lambda argv: bug())([])
