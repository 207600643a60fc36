"""Mistakes that many places can meet: how they are worded, how programs end."""

import difflib
import functools
import sys
import traceback
from collections.abc import Callable, Iterable


def unknown_name(what: str, got: str, known: Iterable[str]) -> ValueError:
  """`got 'gemma_3b' for decoder, expected one of …; did you mean …?`"""
  known = list(known)
  close = difflib.get_close_matches(got, known, n=1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  expected = ", ".join(known) or "none is defined"
  return ValueError(
    f"got {got!r} for {what}, expected one of: {expected}{hint}"
  )


def ends_in_one_message(main: Callable[[list[str]], None]) -> Callable:
  """A program's `main` that ends in a mistake's message, without a traceback.

  A ValueError that our own code raises is a user's mistake, and says what to
  change; one from a library keeps its traceback.
  """

  @functools.wraps(main)
  def run(argv: list[str]):
    try:
      main(argv)
    except ValueError as error:
      *_, (frame, _) = traceback.walk_tb(error.__traceback__)
      package = frame.f_globals["__name__"].partition(".")[0]
      if package not in ("rt2_jax", "launch", "__main__"):
        raise
      sys.exit(str(error))

  return run
