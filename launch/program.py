"""The head of every program: its arguments, its devices and how it ends.

@program.main
def main(): ...

if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
"""

import contextlib
import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator

import absl.logging
from absl import app, flags

from rt2_jax import shipped
from rt2_jax.errors import ends_in_one_message

_OURS = ("rt2_jax", "configs", "data", "launch")


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
  """Imports what needs the packages of an extra, at the top of a program.

  Where one of them is missing the program ends in one message that names it.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package in _OURS:
      raise
    sys.exit(
      f"got no package {package!r}, expected those of the extra [{name}]; run "
      f"`{shipped.install_command(name)}`"
    )


def import_extras(*names: str):
  """Imports packages that are extras of the same name; ends as `extra`."""
  for name in names:
    with extra(name):
      importlib.import_module(name)


def main(function: Callable[..., None]) -> Callable[[list[str]], None]:
  """Wraps a program's main function for `app.run`.

  The function's own parameters are the arguments that the program takes beside
  its flags: `main()` takes flags only, `main(workdir)` one argument and
  `main(*names)` any number. Of the libraries that log with absl
  (Orbax, TFDS) only errors are shown. A `UserError` or Ctrl-C
  ends the program in one message.

  Raises:
    app.UsageError: other arguments are given than the function takes, or a
      flag that is no number.
  """
  signature = inspect.signature(function)
  names = [str(name).upper() for name in signature.parameters.values()]
  expected = " and ".join(names) or "flags only"

  @functools.wraps(function)
  @ends_in_one_message
  def run(argv: list[str]):
    try:
      signature.bind(*argv[1:])
    except TypeError as error:
      raise app.UsageError(f"got {argv[1:]}, expected {expected}") from error
    check_numbers()
    absl.logging.set_verbosity(absl.logging.ERROR)
    function(*argv[1:])

  return run


def check_numbers():
  """Raises app.UsageError for a flag that is NaN, which passes any range."""
  for name, value in flags.FLAGS.flag_values_dict().items():
    if isinstance(value, float) and math.isnan(value):
      raise app.UsageError(f"got --{name}=nan, expected a number")


def main_on_devices(function: Callable[..., None]) -> Callable:
  """Wraps a main function that computes with JAX in this process, see `main`.

  Importing this module starts no JAX: programs that only write data do not
  have it.
  """

  @functools.wraps(function)
  def prepared(*arguments: str):
    from rt2_jax import platforms

    platforms.prepare()
    function(*arguments)

  return main(prepared)
