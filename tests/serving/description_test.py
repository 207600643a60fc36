"""What a service says of itself, and the token that it shares with robots."""

import pytest

from rt2_jax.errors import UserError
from rt2_jax.serving import description


@pytest.mark.parametrize("token", ["secret\n", " secret", "schlüssel", "a\tb"])
def test_a_token_that_no_header_holds_is_refused(monkeypatch, token):
  monkeypatch.setenv(description.TOKEN_VARIABLE, token)
  with pytest.raises(UserError, match=description.TOKEN_VARIABLE) as refused:
    description.read_token()
  assert token.strip() not in str(refused.value)


@pytest.mark.parametrize("token", ["", "s3cret-+/=", "two words"])
def test_a_token_is_read_from_the_environment(monkeypatch, token):
  monkeypatch.setenv(description.TOKEN_VARIABLE, token)
  assert description.read_token() == token
