"""Messages: what they say, and that a program ends in nothing else."""

import pytest

from rt2_jax.actions import RT2
from rt2_jax.errors import ends_in_one_message, unknown_name


def test_an_unknown_name_lists_the_known_ones():
  error = unknown_name("colour", "gren", ["red", "green"])
  assert str(error) == (
    "got 'gren' for colour, expected one of: red, green; did you mean 'green'?"
  )


def test_a_users_mistake_ends_in_its_message():
  @ends_in_one_message
  def main(argv):
    RT2.index(argv[0])

  main(["dx"])
  with pytest.raises(SystemExit, match="^got 'dxx' for dimension of action sp"):
    main(["dxx"])


def test_a_librarys_error_keeps_its_traceback():
  @ends_in_one_message
  def main(argv):
    import json

    json.loads(argv[0])

  with pytest.raises(ValueError, match="Expecting property name"):
    main(["{["])
