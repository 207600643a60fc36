"""Compiles programs for TPU slices with the real compiler, without a TPU.

JAX with `libtpu` knows every slice by name; no TPU is needed. Two modes:

* "fast" stops the compiler when it has written the schedule and the memory
  plan, before it generates code: seconds, and exact memory.
* "full" finishes, and returns the compiler's own estimates of cycles as well:
  minutes.

The compiler runs in a process of its own, which "fast" has to stop, and which
takes its memory along.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import multiprocessing
import os
import pathlib
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from rt2_jax import shipped, storage
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.tpu.chips import SLICES

MODES = ("fast", "full")

_POLL_S = 0.1
# What a program that does not fit needs, in the compiler's two messages: all of
# it, or what it needs beside its arguments.
_USED = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of a program.

  Attributes:
    hlo: the scheduled program; "" for one that does not fit.
    hbm_bytes: memory that one chip needs, arguments included.
    mesh: chips along each axis.
    coords: place of each chip in the torus, by partition id.
    facts: what `lower` returned beside the program.
    fits: whether a chip has that much memory.
  """

  hlo: str
  hbm_bytes: float
  mesh: Mapping[str, int]
  coords: Sequence[tuple[int, ...]]
  facts: dict[str, Any]
  fits: bool


def devices(topology: str) -> list[jax.Device]:
  """Descriptions of a slice's chips.

  Args:
    topology: e.g. "v5e:16x16", or "v5e:16x16*2" for two such slices.

  Raises:
    UserError: a slice that `chips.SLICES` does not list, or no `libtpu`.
  """
  check_topology(topology)
  name, _, slices = topology.partition("*")
  options = {"num_slices": int(slices)} if slices else {}
  return topologies.get_topology_desc(
    platform="tpu", topology_name=name, **options
  ).devices


def check_topology(topology: str):
  """Raises what `devices` would, without starting anything."""
  name, times, slices = topology.partition("*")
  if name not in SLICES:
    raise unknown_name("topology", name, SLICES)
  if times and (not slices.isdecimal() or int(slices) < 1):
    raise UserError(
      f"got topology {topology!r}, expected a number of slices after '*', such "
      f"as '{name}*2'"
    )
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "got no module libtpu, which holds the TPU compiler; install it with "
      f"`{shipped.install_command('estimate')}` (Linux on x86-64; no TPU is "
      "needed)"
    )


def count_chips(topology: str) -> tuple[int, int]:
  """Counts (chips, slices), e.g. (512, 2) for "v5e:16x16*2"."""
  check_topology(topology)
  name, _, slices = topology.partition("*")
  axes = map(int, name.partition(":")[2].split("x"))
  slices = int(slices or 1)
  return math.prod(axes) * slices, slices


def compile_for(
  topology: str,
  lower: Callable[..., tuple[jax.stages.Lowered, Mesh, dict]],
  arguments: Sequence[Any],
  mode: str,
  options: Mapping[str, Any] | None = None,
) -> Compiled:
  """Compiles a program for a slice.

  Args:
    topology: see `devices`.
    lower: called in another process with the slice's devices and `arguments`;
      returns the program, its mesh and facts about it, a dict that can be
      pickled, with "argument_bytes", those of one chip. A module's function,
      so that the other process can find it.
    arguments: what can be pickled.
    mode: of `MODES`.
    options: of the compiler.

  Raises:
    UserError: an unknown slice or mode, or what `lower` raises; or no `libtpu`.
    RuntimeError: the compiler failed.
  """
  if mode not in MODES:
    raise unknown_name("mode", mode, MODES)
  check_topology(topology)
  with tempfile.TemporaryDirectory(prefix="ahead_of_time") as name:
    folder = pathlib.Path(name)
    process = multiprocessing.get_context("spawn").Process(
      target=_compile,
      args=(folder, topology, lower, arguments, mode, dict(options or {})),
      daemon=True,
    )
    process.start()
    try:
      while process.is_alive() and not _planned(folder, mode):
        process.join(_POLL_S)
    finally:
      process.kill()
      process.join()
    return _result(folder)


def _planned(folder: pathlib.Path, mode: str) -> bool:
  """Tells whether all that "fast" needs is written.

  The schedule is written twice, before and after the memory plan: the second
  one is complete when it is as long as the first.
  """
  if mode != "fast":
    return False
  first = list(folder.glob("*after_optimizations.txt"))
  second = list(folder.glob("*after_optimizations_after_buffer_assignment.txt"))
  return bool(second) and first[0].stat().st_size == second[0].stat().st_size


def _result(folder: pathlib.Path) -> Compiled:
  if (failure := folder / "failure").exists():
    raise pickle.loads(failure.read_bytes())
  if (done := folder / "done").exists():
    return pickle.loads(done.read_bytes())
  plans = list(folder.glob("*after_optimizations.txt"))
  if not plans:
    log = (folder / "log").read_text(errors="replace")
    raise RuntimeError(
      f"got no program from the TPU compiler, whose last words are: "
      f"{log[-1000:]}"
    )
  memory = next(folder.glob("*memory-usage-report.txt")).read_text()
  size = re.search(r"\(color=0\)\s*\nTotal bytes: (\d+)", memory).group(1)
  where = pickle.loads((folder / "lowered").read_bytes())
  return Compiled(plans[0].read_text(), float(size), *where, True)


def _compile(folder, topology, lower, arguments, mode, options):
  """Compiles in the other process."""
  # The compiler writes its warnings below Python.
  log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
  os.dup2(log, 1)
  os.dup2(log, 2)
  # There is no TPU metadata server here, and several processes may compile.
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  # A shell's flags would change the estimate; those of a CPU end the compiler.
  os.environ.pop("XLA_FLAGS", None)
  jax.config.update("jax_platforms", "cpu")
  try:
    done = _compile_here(folder, topology, lower, arguments, mode, options)
    storage.write(folder / "done", pickle.dumps(done))
  except Exception as error:
    storage.write(folder / "failure", pickle.dumps(_plain(error)))


def _compile_here(folder, topology, lower, arguments, mode, options):
  lowered, mesh, facts = lower(devices(topology), *arguments)
  coords = [tuple(map(int, chip.coords)) for chip in mesh.devices.flat]
  where = dict(mesh.shape), coords, facts
  storage.write(folder / "lowered", pickle.dumps(where))
  if mode == "fast":
    options = options | {
      "xla_dump_to": str(folder),
      "xla_dump_hlo_as_text": True,
      "xla_dump_hlo_as_long_text": True,
      "xla_dump_hlo_module_re": "jit_.*",
    }
  try:
    compiled = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    size = _needed(str(error), facts["argument_bytes"])
    if size is None:
      raise
    return Compiled("", size, *where, False)
  size = planned_bytes(compiled)
  return Compiled(compiled.as_text(), size, *where, True)


def planned_bytes(program: jax.stages.Compiled) -> float:
  """Adds up what a compiled program needs at its peak on each device."""
  memory = program.memory_analysis()
  return float(
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def _needed(message: str, argument_bytes: float) -> float | None:
  """Bytes per chip, if the message says that they do not fit."""
  used, temporaries = _USED.search(message), _TEMPORARIES.search(message)
  found = used or temporaries
  if found is None:
    return None
  size = float(found.group(1)) * _UNITS[found.group(2)]
  return size if used else size + argument_bytes


def _plain(error: Exception) -> Exception:
  """Makes an error that can be pickled, with the words of this one."""
  for kind in (UserError, ValueError, TypeError):
    if isinstance(error, kind):
      return kind(str(error))
  return RuntimeError(f"{type(error).__name__}: {error}")
