"""One wording for a mistake that many places can meet: an unknown name."""

import difflib
from collections.abc import Iterable


def unknown_name(what: str, got: str, known: Iterable[str]) -> ValueError:
  """`got 'gemma_3b' for decoder, expected one of …; did you mean …?`"""
  known = list(known)
  close = difflib.get_close_matches(got, known, n=1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  expected = ", ".join(known) or "none is defined"
  return ValueError(
    f"got {got!r} for {what}, expected one of: {expected}{hint}"
  )
