"""Hashes functions by what they compute, so that a change is noticed.

The index of a dataset depends on functions that people edit: a gripper's sign,
a unit, a constant in another module. The hash of a function covers its bytecode
and, transitively, all that it refers to by name, also what it imports itself:
functions, classes and values of the same package, of this one, and of any file
that is not installed.
Comments, line numbers and other functions of the file do not count.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import logging
import re
import struct
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_INSTALLED = ("site-packages", "dist-packages")
# Of a class: made by Python or by decorators from what is hashed anyway.
_MADE = ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__")
_MADE += ("__dataclass_fields__", "__dataclass_params__", "__abstractmethods__")
_MADE += ("_abc_impl", "__firstlineno__", "__static_attributes__")
_MADE += ("__annotate_func__", "__annotations_cache__", "__annotate__")


def code_hash(*functions: Any) -> str:
  """Hashes callables and values by what they do and hold, 12 hex digits.

  It differs between versions of Python, whose bytecode differs.
  """
  tops = {_module(function).partition(".")[0] for function in functions}
  return _Walk({"rt2_jax", *tops} - {""}).digest(functions).hex()[:12]


class _Walk:
  """Walks through everything that some functions refer to, once."""

  def __init__(self, packages: set[str]):
    """Takes the `packages` to enter even if they are installed."""
    self._packages = packages
    self._met: dict[int, Any] = {}  # kept, so that no address is used twice

  def digest(self, value: Any) -> bytes:
    return hashlib.sha256(repr(self._parts(value)).encode()).digest()

  def _parts(self, value: Any) -> Any:
    """Identifies a value by nested tuples of texts, numbers and digests."""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if value is None or isinstance(value, (bool, int, float, complex, str)):
      return name, repr(value)
    if isinstance(value, (bytes, bytearray)):
      return name, bytes(value)
    if (
      isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject
    ):
      return name, str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, (set, frozenset)):  # their order is another each time
      return name, sorted(self.digest(x) for x in value)
    if isinstance(value, types.CodeType):
      return self._code(value)
    if isinstance(value, tuple):  # constants: which are one object may vary
      methods = self.digest(type(value)) if self._is_ours(type(value)) else ""
      return name, tuple(self.digest(x) for x in value), methods
    if id(value) in self._met:
      return "met before", getattr(value, "__qualname__", name)
    self._met[id(value)] = value
    if isinstance(value, list):
      return name, tuple(self.digest(x) for x in value)
    if isinstance(value, Mapping):
      items = [(self.digest(k), self.digest(v)) for k, v in value.items()]
      return name, sorted(items)
    return self._object(value, name)

  def _object(self, value: Any, name: str) -> Any:
    if isinstance(value, types.ModuleType):
      return "module", value.__name__
    if isinstance(value, functools.partial):
      return name, self.digest((value.func, value.args, value.keywords))
    if isinstance(value, types.MethodType):
      return name, self.digest((value.__func__, value.__self__))
    if isinstance(value, (staticmethod, classmethod)):
      return name, self.digest(value.__func__)
    if isinstance(value, property):
      return name, self.digest((value.fget, value.fset))
    if isinstance(value, functools.cached_property):
      return name, self.digest(value.func)
    is_ours = self._is_ours(value)
    if isinstance(value, types.FunctionType):
      return self._function(value) if is_ours else (name, _place(value))
    if isinstance(value, type):
      return self._class(value) if is_ours else (name, _place(value))
    if isinstance(value, logging.Logger):
      return name, value.name
    if isinstance(value, struct.Struct):
      return name, value.format
    if hasattr(value, "__wrapped__"):  # functools.cache and its like
      return name, self.digest(value.__wrapped__)
    if self._is_ours(type(value)):
      return name, self.digest((type(value), _attributes(value)))
    return name, _place(value), _ADDRESS.sub("", repr(value))

  def _function(self, function: types.FunctionType) -> Any:
    code = function.__code__
    names = set(_names(code))
    found = [
      (name, self._named(function.__globals__[name], names))
      for name in sorted(names & set(function.__globals__))
    ]
    found += [
      (module.__name__, self._named(module, names))
      for module in self._imported(code, function.__globals__)
    ]
    cells = [_content(cell) for cell in function.__closure__ or ()]
    given = (function.__defaults__, function.__kwdefaults__, cells)
    return self._code(code, function.__doc__), self.digest(given), found

  def _imported(
    self, code: types.CodeType, within: Mapping[str, Any]
  ) -> Iterator[types.ModuleType]:
    """Modules of the project's own code that code imports when it runs."""
    steps = dis.get_instructions(code)
    steps = [step for step in steps if step.opname != "EXTENDED_ARG"]
    for i, step in enumerate(steps):
      if step.opname != "IMPORT_NAME":
        continue
      level, names = (before.argval for before in steps[i - 2 : i])
      if level or self._is_found_ours(step.argval.partition(".")[0]):
        # As the statement itself does: parts may be modules, too.
        yield __import__(step.argval, dict(within), {}, names or (), level)
    for constant in code.co_consts:
      if isinstance(constant, types.CodeType):
        yield from self._imported(constant, within)

  def _is_found_ours(self, package: str) -> bool:
    """Decides as `_is_ours`, for a package that may not be imported yet."""
    if package in self._packages:
      return True
    spec = importlib.util.find_spec(package)
    if spec is None or package in sys.stdlib_module_names:
      return False
    place = spec.origin or str(spec.submodule_search_locations)
    return not any(part in place for part in _INSTALLED)

  def _named(self, value: Any, names: set[str]) -> Any:
    """Identifies a global that code names; of modules, their named parts."""
    if not isinstance(value, types.ModuleType):
      return self.digest(value)
    if not self._is_ours(value):
      return value.__name__
    known = sorted(names & set(vars(value)))
    # A package's part may be a module with parts; `names` less its own name
    # ends the walk where modules import one another.
    return [
      (name, self._named(vars(value)[name], names - {name})) for name in known
    ]

  def _code(self, code: types.CodeType, doc: str | None = None) -> Any:
    constants = list(code.co_consts)
    if doc is not None and constants and constants[0] == doc:
      constants[0] = None
    parts = tuple(self._parts(constant) for constant in constants)
    names = (code.co_names, code.co_argcount, code.co_kwonlyargcount)
    return code.co_code, parts, names, code.co_flags

  def _class(self, cls: type) -> Any:
    parts = [
      (name, self.digest(part))
      for name, part in sorted(vars(cls).items())
      if name not in _MADE
    ]
    return _place(cls), self.digest(cls.__bases__), parts

  def _is_ours(self, value: Any) -> bool:
    """Tells whether a value belongs to the project's own code."""
    module = _module(value)
    if module.partition(".")[0] in self._packages:
      return True
    if module in sys.builtin_module_names:
      return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:  # a notebook, or what was made by exec
      return module in ("__main__", "") or module not in sys.modules
    return not (any(part in file for part in _INSTALLED) or _is_pythons(file))


@functools.cache
def _is_pythons(file: str) -> bool:
  """Tells whether a file belongs to Python's own library."""
  paths = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
  return file.startswith(tuple(filter(None, paths)))


def _names(code: types.CodeType) -> Iterable[str]:
  """Names that code and the functions inside it refer to."""
  yield from code.co_names
  for constant in code.co_consts:
    if isinstance(constant, types.CodeType):
      yield from _names(constant)


def _attributes(value: Any) -> dict[str, Any]:
  """Collects an object's attributes, from its dictionary and slots."""
  held = dict(getattr(value, "__dict__", {}))
  for cls in type(value).__mro__:
    slots = vars(cls).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
      if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
        held[name] = getattr(value, name)
  return held


def _content(cell: types.CellType) -> Any:
  try:
    return cell.cell_contents
  except ValueError:  # not yet assigned
    return None


def _module(value: Any) -> str:
  if isinstance(value, functools.partial):
    return _module(value.func)
  is_module = isinstance(value, types.ModuleType)
  name = value.__name__ if is_module else getattr(value, "__module__", None)
  name = name or ""
  # A process that another one started has the program under another name.
  return "__main__" if name == "__mp_main__" else name


def _place(value: Any) -> str:
  return f"{_module(value)}.{getattr(value, '__qualname__', '')}"
