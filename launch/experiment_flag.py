"""The flag --config of the programs that read an experiment.

A config file states what differs; all other fields have defaults in
`train_config`. They are filled in here, so that a flag can override any of
them, and taken out again where none did: the stored config and its hash are
those of the file.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from rt2_jax.train_config import with_defaults

_NAME = "config"


def define():
  """Defines --config=FILE[:ARGUMENT] and --config.FIELD=VALUE."""
  config_flags.DEFINE_config_file(
    _NAME, None, "One experiment, a file in configs/.", lock_config=False
  )
  flag = flags.FLAGS[_NAME]
  flag.parser = _Parser(flag.parser)


def path() -> str:
  """The config file, without its argument."""
  return config_flags.get_config_filename(flags.FLAGS[_NAME])


def read() -> dict[str, Any]:
  """Reads the fields that the file states or a flag has changed."""
  flag = flags.FLAGS[_NAME]
  return _changed(flag.value.to_dict(), flag.parser.whole, flag.parser.stated)


class _Parser(flags.ArgumentParser):
  """Reads a config file and fills in the defaults.

  Attributes:
    stated: the fields in the file.
    whole: with defaults.
  """

  def __init__(self, files: flags.ArgumentParser):
    self._files = files

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    """Called by absl, which adds the flag's name to a ValueError."""
    path, _, _ = argument.partition(":")
    if not pathlib.Path(path).is_file():
      raise ValueError("got no such file, expected one such as configs/x.py")
    self.stated = self._files.parse(argument).to_dict()
    self.whole = with_defaults(self.stated)
    return ml_collections.ConfigDict(_settable(self.whole)).lock()

  def flag_type(self) -> str:
    return self._files.flag_type()


def _settable(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Lets fields of no certain type (None, {}) take any; readers check them."""

  def settable(value):
    if value is None or value == {}:
      return ml_collections.FieldReference(value, field_type=object)
    return _settable(value) if isinstance(value, Mapping) else value

  return {name: settable(value) for name, value in fields.items()}


def _changed(
  fields: Mapping[str, Any], whole: Mapping[str, Any], stated: Mapping[str, Any]
) -> dict[str, Any]:
  """Leaves out what is neither stated nor changed."""
  kept = {}
  for name, value in fields.items():
    if isinstance(value, Mapping) and isinstance(stated.get(name, {}), Mapping):
      part = _changed(value, whole[name], stated.get(name, {}))
      if part or name in stated:
        kept[name] = part
    elif name in stated or value != whole[name]:
      kept[name] = value
  return kept
