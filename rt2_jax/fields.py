"""Fields of a config or a JSON file: compared with what they build.

A dataclass or a function is the schema: its parameters are the known fields,
its defaults fill those that are left out, and its annotations say which values
a field may have.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rt2_jax import ranges
from rt2_jax.errors import UserError, unknown_name

# Annotations that `ranges` does not check: Python types of JSON's values.
_KINDS = {
  bool: ((bool,), "True or False"),
  str: ((str,), "a text"),
  Mapping: ((Mapping,), "{…}"),
  Sequence: ((list, tuple), "[…]"),
  tuple: ((list, tuple), "[…]"),
  type(None): ((type(None),), "None"),
}


def check(build: Callable, prefix: str, fields: Any):
  """Compares fields with the parameters of a dataclass or function.

  Args:
    build: numbers among its parameters are annotated as in `ranges`.
    prefix: stands before a field's name in messages, such as
      "config.loader." or "robot.json: action[0].".
    fields: values by name.

  Raises:
    UserError: they are no mapping, a field is unknown or missing, or a value
      has another type or lies outside its range.
  """
  parameters = inspect.signature(build).parameters
  place = prefix.rstrip(".: ")
  _check_mapping(place, fields, build)
  for name in fields:
    if name not in parameters:
      raise unknown_name(f"a field of {place}", str(name), parameters)
  missing = [
    prefix + name
    for name, parameter in parameters.items()
    if parameter.default is inspect.Parameter.empty and name not in fields
  ]
  if missing:
    raise UserError(f"got no {', '.join(missing)}; add it")
  hints = typing.get_type_hints(build)
  for name, value in fields.items():
    kinds = _kinds(hints[name])
    if kinds and not any(isinstance(value, wanted) for wanted, _ in kinds):
      nouns = " or ".join(noun for _, noun in kinds)
      raise UserError(
        f"got {prefix}{name} = {value!r:.80}, expected {nouns}; correct it"
      )
  ranges.check(build, prefix, fields)


def _check_mapping(place: str, fields: Any, build: Callable):
  if not isinstance(fields, Mapping):
    raise UserError(
      f"got {place} = {fields!r:.80}, expected {{…}} with the fields "
      f"{', '.join(inspect.signature(build).parameters)}; correct it"
    )


def _kinds(hint: Any) -> list[tuple[tuple[type, ...], str]]:
  """Lists the types that an annotation names; [] where it names another."""
  is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  members = typing.get_args(hint) if is_union else (hint,)
  kinds = [_KINDS.get(typing.get_origin(each) or each) for each in members]
  return kinds if all(kinds) else []


def construct(build: Callable, prefix: str, fields: Any) -> Any:
  """Calls `build(**fields)` after `check`; arguments and errors as there."""
  check(build, prefix, fields)
  return build(**fields)


def defaults(build: Callable) -> dict[str, Any]:
  """Lists the defaults of a dataclass's or function's parameters, by name."""
  made = {}
  if dataclasses.is_dataclass(build):
    # A factory's default is no parameter's.
    made = {
      field.name: field.default_factory()
      for field in dataclasses.fields(build)
      if field.default_factory is not dataclasses.MISSING
    }
  return made | {
    name: parameter.default
    for name, parameter in inspect.signature(build).parameters.items()
    if parameter.default is not inspect.Parameter.empty and name not in made
  }


@dataclasses.dataclass(frozen=True)
class Schema:
  """Nested fields: of a whole, of its parts, and of named members of groups.

  Attributes:
    whole: builds everything.
    parts: field of the whole -> what builds its value.
    groups: field of the whole -> what builds each member of it, by name.
    prefix: of a field's name in messages, such as "config.".
  """

  whole: Callable
  parts: Mapping[str, Callable]
  groups: Mapping[str, Callable]
  prefix: str

  def construct_parts(self, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Builds parts and groups; errors as in `check`."""
    self._check_mappings(fields)
    parts = {
      name: construct(build, f"{self.prefix}{name}.", fields.get(name, {}))
      for name, build in self.parts.items()
    }
    groups = {
      group: {
        name: construct(build, f"{self.prefix}{group}.{name}.", member)
        for name, member in fields.get(group, {}).items()
      }
      for group, build in self.groups.items()
    }
    return dict(fields) | parts | groups

  def with_defaults(self, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in the default of every field that is left out.

    Raises:
      UserError: a part, a group or a member of a group is no mapping.
    """
    self._check_mappings(fields)
    parts = {
      name: _completed(build, fields.get(name, {}))
      for name, build in self.parts.items()
    }
    groups = {
      group: {
        name: _completed(build, member)
        for name, member in fields.get(group, {}).items()
      }
      for group, build in self.groups.items()
    }
    return defaults(self.whole) | dict(fields) | parts | groups

  def without_defaults(
    self, fields: Mapping[str, Any], stated: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Keeps the fields that were stated, and those that have changed.

    Args:
      fields: `with_defaults(stated)`, in which values may have changed.
      stated: fields of a config file.

    Returns:
      Fields with `with_defaults(result) == fields`.
    """
    whole = self.with_defaults(stated)
    kept = _stated_or_changed(fields, whole, stated)
    for name in kept.keys() & self.parts.keys():
      kept[name] = _stated_or_changed(
        fields[name], whole[name], stated.get(name, {})
      )
    for group in kept.keys() & self.groups.keys():
      before = stated.get(group, {})
      kept[group] = {
        name: _stated_or_changed(
          member, whole[group].get(name, {}), before.get(name, {})
        )
        for name, member in fields[group].items()
      }
    return kept

  def _check_mappings(self, fields: Mapping[str, Any]):
    """Raises UserError where a part, a group or a member is no mapping."""
    for name, build in self.parts.items():
      _check_mapping(f"{self.prefix}{name}", fields.get(name, {}), build)
    for group, build in self.groups.items():
      place, members = f"{self.prefix}{group}", fields.get(group, {})
      if not isinstance(members, Mapping):
        raise UserError(
          f"got {place} = {members!r:.80}, expected {{NAME: {{…}}, …}}; "
          "correct it"
        )
      for name, member in members.items():
        _check_mapping(f"{place}.{name}", member, build)


def _completed(build: Callable, stated: Mapping[str, Any]) -> dict[str, Any]:
  """Adds defaults to fields, and to fields within one, such as filters."""
  default = defaults(build)
  inner = {
    name: {**default[name], **value}
    for name, value in stated.items()
    if isinstance(value, Mapping) and isinstance(default.get(name), Mapping)
  }
  return default | dict(stated) | inner


def _stated_or_changed(
  fields: Mapping[str, Any], whole: Mapping[str, Any], stated: Mapping[str, Any]
) -> dict[str, Any]:
  return {
    name: value
    for name, value in fields.items()
    if name in stated or name not in whole or value != whole[name]
  }
