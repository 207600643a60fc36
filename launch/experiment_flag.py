"""The flag --config of the programs that read an experiment.

A config file states what differs; all other fields have defaults in
`train_config`. They are filled in here, so that a flag can override any of
them, and taken out again where none did: the stored config and its hash are
those of the file.
"""

import contextlib
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from launch import config_file
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.train_config import with_defaults, without_defaults

_NAME = "config"
_OVERRIDE = re.compile(rf"--?(?:no)?{_NAME}\.([^=]*)")


def define():
  """Defines --config=FILE[:ARGUMENT] and --config.FIELD=VALUE.

  Instead of a file a shipped config's name is enough: `--config=quickstart`.
  """
  config_flags.DEFINE_config_file(
    _NAME, None, "One experiment, a file in configs/.", lock_config=False
  )
  flag = flags.FLAGS[_NAME]
  flag.parser = _Parser(flag.parser)


def path() -> str:
  """Returns the config file, without its argument."""
  argument = config_flags.get_config_filename(flags.FLAGS[_NAME])
  return argument.partition(":")[0]


def read() -> dict[str, Any]:
  """Reads the fields that the file states or a flag has changed."""
  flag = flags.FLAGS[_NAME]
  return without_defaults(flag.value.to_dict(), flag.parser.stated)


class _Parser(flags.ArgumentParser):
  """Reads a config file and fills in the defaults.

  Attributes:
    stated: the fields in the file.
  """

  def __init__(self, files: flags.ArgumentParser):
    self._files = files

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    """Parses the flag's value; absl adds the flag's name to a ValueError."""
    file, separator, rest = argument.partition(":")
    path = config_file.find(file)
    if not pathlib.Path(path).is_file():
      raise ValueError("got no such file, expected one such as configs/x.py")
    if separator:
      # ml_collections shows a traceback: right for a bug of the file, such as a
      # TypeError, and not for an argument that it refuses.
      with contextlib.suppress(TypeError):
        config_file.read(path + separator + rest)
    self.stated = self._files.parse(path + separator + rest).to_dict()
    whole = with_defaults(self.stated)
    for name in _overridden():
      check_field(whole, name)
    return ml_collections.ConfigDict(_settable(whole)).lock()

  def flag_type(self) -> str:
    return self._files.flag_type()


def _overridden() -> Iterator[str]:
  """Yields the FIELD of each --config.FIELD=VALUE, also in a --flagfile.

  ml_collections looks them up while absl parses --config, and ends in an
  AttributeError or KeyError for a name that it does not find.
  """
  for argument in flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False):
    if match := _OVERRIDE.match(argument):
      yield match[1]


def check_field(config: Mapping[str, Any], name: str):
  """Looks up a field such as "optimizer.learning_rate".

  Raises:
    UserError: no such field.
  """
  place, part = _NAME, config
  for key in name.split("."):
    if not isinstance(part, Mapping):
      raise UserError(
        f"got --{_NAME}.{name}, but {place} is {part!r} and has no fields; set "
        "it as a whole"
      )
    if key not in part:
      raise unknown_name(f"a field of {place}", key, part)
    place, part = f"{place}.{key}", part[key]


def _settable(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Lets fields of no certain type (None, {}) take any; readers check them."""

  def settable(value):
    if value is None or value == {}:
      return ml_collections.FieldReference(value, field_type=object)
    return _settable(value) if isinstance(value, Mapping) else value

  return {name: settable(value) for name, value in fields.items()}
