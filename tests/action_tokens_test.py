"""Action encodings: the texts and the ids that are refused."""

import pytest

from rt2_jax import action_tokens


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1 128 91 241 5 101 127", "expected 8 whole numbers.* got 7 words"),
    ("1 128 91 241 5 101 127 217 3", "got 9 words"),
    ("1  128 91 241 5 101 127 217", "single spaces"),
    ("1 128 91 241 5 101 127 217 ", "single spaces"),
    ("1 128 91 2.5 5 101 127 217", "whole numbers"),
    ("1 128 91 ٣ 5 101 127 217", "whole numbers"),
    ("", "whole numbers"),
  ],
)
def test_the_text_parser_is_strict(text, message):
  with pytest.raises(ValueError, match=message):
    action_tokens.parse_numbers(text, 8)


def test_action_ids_must_be_different():
  with pytest.raises(ValueError, match="got 256 action ids, 255 of them"):
    action_tokens.RareTokens((7, 7, *range(100, 354)))
