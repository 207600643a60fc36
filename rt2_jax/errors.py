"""Mistakes that many places can meet: how they are worded, how programs end."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable

_INTERRUPTED = 130


class UserError(ValueError):
  """A user's mistake: one message with got / expected / change this.

  Everything else that is raised is a bug of ours, and keeps its traceback.
  """


def unknown_name(what: str, got: str, known: Iterable[str]) -> UserError:
  """`got 'gemma_3b' for decoder, expected one of …; did you mean …?`"""
  known = list(known)
  close = difflib.get_close_matches(got, known, n=1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  expected = ", ".join(known) or "none is defined"
  return UserError(f"got {got!r} for {what}, expected one of: {expected}{hint}")


def ends_in_one_message(main: Callable[[list[str]], None]) -> Callable:
  """Ends a program's `main` in a UserError's message, without a traceback.

  Ctrl-C ends it in one word, with the exit code that shells give it.
  """

  @functools.wraps(main)
  def run(argv: list[str]):
    try:
      main(argv)
    except UserError as error:
      sys.exit(str(error))
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr)
      sys.exit(_INTERRUPTED)

  return run
