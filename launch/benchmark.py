"""Measures this machine and prints one JSON object per line.

  python launch/benchmark.py [NAME …]

The names follow. The default is all but `checkpoint`, `saving` and `service`.

All but `tabletop` take --config (default: configs/rt1_debug.py).

loader: read the config's sources, in examples per second of this process's
  CPU time, decoding on the host (`make bench` renders episodes for it).
train: the config's training step on a synthetic batch. `mfu` is useful FLOP
  (see `tpu.train_step.useful_flops`) / (step_s * devices * matmul_flops), where
  matmul_flops is what one device reaches here on a large matrix product in the
  config's dtype. With --beside=torch also the same model, batch, loss and
  optimizer in PyTorch and transformers, in a process of its own, on as many
  threads: `taskset -c 0 python launch/benchmark.py train --beside=torch` for
  one. `ratio` is its CPU time to ours.
policy: one call of the same model, random, from image files to actions; for
  each of --robots that share it, p50, p95 and p99 of its parts, see
  `benchmarks.acting.measure`. --run=WORKDIR measures a run's policy on its own
  recorded steps. --beside=torch adds `generate` of transformers on the exported
  policy and --beside=int8 the policy with --int8 of launch/serve.py: their
  times, and how many of their actions are the same.
service: the same policy as launch/serve.py serves it, to each of --robots that
  ask at once, over the loopback; see `benchmarks.service.measure`.
tabletop: one simulated environment in a process of its own, driven by the
  scripted expert, in CPU time; a step holds the drawing of one image.
checkpoint: saves and restores --gigabytes of arrays with the shapes of the
  config's parameters in each of --folders, local or a bucket's; one line for
  each. `blocked_s` is what a save holds training up for.
saving: --steps training steps, with a save in the first of --folders and
  without one. `overhead` is what the save adds to their CPU time.

Speeds are medians. Only `loader` reads data. A missing tokenizer is replaced by
data/small_tokenizer.model, which changes words and not costs. A GPU has a
program of its own, launch/gpu_check.py.
"""

import contextlib
import json

from absl import app, flags

from launch import config_file, program
from rt2_jax.benchmarks import acting, meters, saving, tabletop, training
from rt2_jax.errors import UserError
from rt2_jax.train_config import TrainConfig, config_hash

_CONFIG = flags.DEFINE_string(
  "config", "configs/rt1_debug.py", "One experiment; file.py or file.py:data."
)
_DATA = flags.DEFINE_string(
  "data", None, "Instead of the path of the config's first robot source."
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", None, "Instead of the config's, for `train`.", 1
)
_BATCHES = flags.DEFINE_integer("batches", 60, "Timed batches of `loader`.", 1)
_SOAK_BATCHES = flags.DEFINE_integer(
  "soak_batches", 500, "Batches over which memory may not grow.", 1
)
_BESIDE = flags.DEFINE_multi_enum(
  "beside", [], ["torch", "int8"], "What `train` and `policy` measure, too."
)
_RUN = flags.DEFINE_string(
  "run", None, "Workdir of the policy of `policy` and `service`."
)
_ROBOTS = flags.DEFINE_list(
  "robots", ["1"], "Numbers of robots of `policy` and `service`."
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed calls.", 1)
_STEPS = flags.DEFINE_integer("steps", 100, "Of `saving`, for one save.", 1)
_FOLDERS = flags.DEFINE_list("folders", ["runs/bench"], "Of `checkpoint`.")
_GIGABYTES = flags.DEFINE_float("gigabytes", 1.0, "Of `checkpoint`.", 1e-4)
_DEFAULT = ("loader", "train", "policy", "tabletop")


@program.main_on_devices
def main(*names):
  benchmarks = {
    "loader": loader,
    "train": train,
    "policy": policy,
    "tabletop": lambda: [tabletop.measure(5 * _REPEATS.value)],
    "checkpoint": checkpoint,
    "saving": saving_overhead,
    "service": service,
  }
  unknown = set(names) - set(benchmarks)
  if unknown:
    raise app.UsageError(f"got {unknown}, expected any of {list(benchmarks)}")
  for name in names or _DEFAULT:
    start = {"benchmark": name, "machine": meters.machine()}
    for row in benchmarks[name]():
      print(json.dumps(start | row), flush=True)


def loader() -> list[dict]:
  # Here alone: a bare machine lacks the packages that read data.
  from rt2_jax.benchmarks import loading

  fields = read_config()
  names = named(fields)  # wherever the data lie
  if _DATA.value:
    next(iter(fields["sources"].values()))["path"] = _DATA.value
  config = TrainConfig.from_dict(fields)
  row = loading.measure(config, _BATCHES.value, _SOAK_BATCHES.value)
  return [names | row]


def train() -> list[dict]:
  fields = read_config()
  if _BATCH_SIZE.value:
    fields["batch_size"] = _BATCH_SIZE.value
  in_torch = "torch" in _BESIDE.value
  if in_torch:
    fields = training.as_torch_knows_it(fields)
  case = training.Case.of(TrainConfig.from_dict(fields))
  state, other = case.trainer.init_state(), {}
  if in_torch:
    other = training.in_torch(case, state, _REPEATS.value)
  steps = training.run(case, state, _REPEATS.value)
  flops = meters.matmul_flops(case.config.model.llm.dtype)
  row = named(fields) | training.facts(case, steps, flops)
  if other:
    other["ratio"] = round(other["step_cpu_s"] / steps.step_cpu_s, 3)
    other["losses"] = other["losses"][:4]
    row |= {"losses": steps.losses[:4], "torch": other}
  return [row]


def policy() -> list[dict]:
  subject, name = open_subject()
  numbers, repeats = robots(), _REPEATS.value
  rows = [name | acting.measure(subject, n, repeats) for n in numbers]
  for beside in _BESIDE.value:
    with contextlib.ExitStack() as opened:
      with program.extra(beside):
        other = opened.enter_context(acting.OTHERS[beside](subject))
      for row, n in zip(rows, numbers, strict=True):
        row[beside] = acting.compare(subject, other, n, repeats)
        call_ms = row[beside]["ms"]["call"]["p50"]
        row[beside]["ratio"] = round(call_ms / row["action_ms"], 2)
  return rows


def service() -> list[dict]:
  with program.extra("serve"):
    from rt2_jax.benchmarks import service

  subject, name = open_subject()
  policy, shown = subject.policy, subject.shown
  rows = service.measure(policy, shown, robots(), _REPEATS.value)
  return [name | row for row in rows]


def open_subject() -> tuple[acting.Subject, dict]:
  """Opens the policy that the flags name, and says which it is."""
  if _RUN.value:
    subject, name = acting.Subject.of_run(_RUN.value)
  else:
    fields = read_config()
    subject = acting.Subject.of_config(TrainConfig.from_dict(fields))
    name = named(fields)
  return subject, name | {"dtype": subject.policy.model.llm.dtype}


def robots() -> list[int]:
  """Reads --robots.

  Raises:
    UserError: not whole numbers from 1 on.
  """
  values = _ROBOTS.value
  if not values or not all(v.isdecimal() and int(v) > 0 for v in values):
    raise UserError(
      f"got --robots={','.join(values)}, expected numbers of robots such as 1,8"
    )
  return [int(value) for value in values]


def checkpoint() -> list[dict]:
  fields = read_config()
  config = TrainConfig.from_dict(fields)
  state = saving.draw_state(config, _GIGABYTES.value)
  return [
    named(fields) | saving.measure(state, folder, _REPEATS.value)
    for folder in _FOLDERS.value
  ]


def saving_overhead() -> list[dict]:
  fields = read_config()
  case = training.Case.of(TrainConfig.from_dict(fields))
  state, folder = case.trainer.init_state(), _FOLDERS.value[0]
  measured = saving.overhead(case, state, folder, _STEPS.value, _REPEATS.value)
  return [named(fields) | measured]


def read_config() -> dict:
  return config_file.read(_CONFIG.value)


def named(fields: dict) -> dict:
  """Says what was measured."""
  return {"config": _CONFIG.value, "config_hash": config_hash(fields)}


if __name__ == "__main__":
  app.run(main)
