"""Mistakes that many places can meet: how they are worded, how programs end."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator

_INTERRUPTED = 130
_LONGEST_NAME = 500  # characters; the rest of a wrong name is cut
# Exit code after which the same command goes on: a run was asked to stop and
# has saved its step, or it has lost a host.
START_AGAIN = 42

# A page that says what stands behind a message which holds one of the words.
EXPLAINED = {
  "docs/troubleshooting.md": (
    "got no way to draw without a screen",
    "run the environment in a",
    "checksum is wrong",
    "got a config that differs from the one in",
    "in which another program trains now",
    "there is no checkpoint",
    "got logits that are not finite",
  ),
}


class UserError(ValueError):
  """A user's mistake: one message with got / expected / change this.

  Everything else that is raised is a bug of ours, and keeps its traceback.
  """


class Stopped(Exception):
  """A run that ends early because it was asked to; its last step is saved."""


def unknown_name(what: str, got: str, known: Iterable[str]) -> UserError:
  """`got 'gemma_3b' for decoder, expected one of …; did you mean …?`"""
  # Comparing a name of a million characters would take 0.3 s.
  known, got = list(known), got[:_LONGEST_NAME]
  close = difflib.get_close_matches(got, known, n=1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  expected = ", ".join(known) or "none is defined"
  return UserError(f"got {got!r} for {what}, expected one of: {expected}{hint}")


def first_line(error: BaseException) -> str:
  """Returns the first line of an error, cut; its type where it says nothing."""
  text = str(error).strip() or type(error).__name__
  return f"{text.splitlines()[0]:.200}"


def _pages(message: str) -> Iterator[str]:
  """Yields a line for each page that explains a message."""
  for page, words in EXPLAINED.items():
    if any(w in message for w in words):
      yield f"more about it: {page}"


def ends_in_one_message(main: Callable[[list[str]], None]) -> Callable:
  """Ends a program's `main` in a UserError's message, without a traceback.

  A file that the user may not open ends it in one message, too, and Ctrl-C in
  one word, with the exit code that shells give it. A run that saved its work on
  request ends with `START_AGAIN`.
  """

  @functools.wraps(main)
  def run(argv: list[str]):
    try:
      main(argv)
    except UserError as error:
      sys.exit("\n".join((str(error), *_pages(str(error)))))
    except PermissionError as error:
      if error.filename is None:
        raise
      sys.exit(
        f"got {str(error.filename)!r}, which this user may not open "
        f"({error.strerror}); ask its owner for the right, or name another"
      )
    except Stopped as stop:
      print(stop, file=sys.stderr)
      sys.exit(START_AGAIN)
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr)
      sys.exit(_INTERRUPTED)

  return run
