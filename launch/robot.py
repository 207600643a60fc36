"""Drives a robot by a policy that is served elsewhere.

  python launch/robot.py --server=ws://10.0.0.5:8000 --robot=my_lab.arm:make \\
    --instruction="put carrot on plate" --record=episodes
  python launch/robot.py --server=ws://127.0.0.1:8000 --robot=tabletop \\
    --suites=seen --episodes=20 --rate_hz=50

needs numpy and the protocol, no JAX. A robot is `tabletop`, the simulated one,
or the import path of a function that gets an instruction and returns a
`rt2_jax.robot_loop.Robot`; its attribute `expects` may hold fields of the
service's metadata that it was written for, so that another policy is refused.

The loop runs at --rate_hz, by default the policy's own. It carries out a chunk
while the next is computed, or holds with --wait, keeps to the limits, holds
when there is no action, and stops when the policy terminates. Ctrl-C, SIGTERM
and the end of an SSH session stop the robot too. With --record each episode
becomes a file, see data/import_robot_log.py. A token is read from the variable
RT2_TOKEN.
"""

import collections
import json
import math
import signal
from collections.abc import Callable, Iterator

import numpy as np
from absl import app, flags

from launch import program
from rt2_jax import import_path, robot_log, storage
from rt2_jax.errors import UserError
from rt2_jax.robot_actions import Limits
from rt2_jax.robot_loop import ControlLoop, EpisodeLog, LoopConfig, Robot

with program.extra("serve"):
  from rt2_jax.robot_client import RobotClient, UnansweredError
  from rt2_jax.serving.description import read_token

_SERVER = flags.DEFINE_string(
  "server", None, "Address of launch/serve.py, ws://…"
)
_ROBOT = flags.DEFINE_string("robot", None, "tabletop, or an import path.")
_INSTRUCTION = flags.DEFINE_string("instruction", "", "What to do.")
_EPISODES = flags.DEFINE_integer("episodes", 1, "How many; of each suite.", 1)
_RATE = flags.DEFINE_float(
  "rate_hz", None, "Periods per second; default: the policy's.", 0.0
)
_EXECUTE = flags.DEFINE_integer(
  "execute", 1, "Steps after which the service is asked again.", 1
)
_WAIT = flags.DEFINE_boolean(
  "wait", False, "Holds until it is answered, not acting on an older question."
)
_DECAY = flags.DEFINE_float(
  "decay",
  None,
  "Averages overlapping chunks: one that is k steps older weighs "
  "exp(-decay * k). Default: the newest chunk alone.",
  0.0,
)
_TIMEOUT = flags.DEFINE_float("timeout_s", 2.0, "Of an answer.", 0.0)
_MAX_STEPS = flags.DEFINE_integer("max_steps", 1000, "Of an episode.", 1)
_MAX_SPEED = flags.DEFINE_float("max_speed", math.inf, "Metres per second.", 0)
_MAX_TURN = flags.DEFINE_float("max_turn", math.inf, "Radians per second.", 0)
_WORKSPACE = flags.DEFINE_list(
  "workspace", [], "x,y,z,x,y,z in metres: the least and the largest."
)
_RECORD = flags.DEFINE_string("record", None, "Folder for the episodes.")
_SUITES = flags.DEFINE_list("suites", ["seen"], "Of the tabletop.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the tabletop's trials.", 0)
_TABLETOP = flags.DEFINE_string(
  "tabletop", "{}", "JSON: image_size, concepts and families of the tabletop."
)


@program.main
def main():
  end_as_by_ctrl_c(signal.SIGTERM, signal.SIGHUP)
  record = None
  if _RECORD.value is not None:
    record = storage.output_folder(_RECORD.value, "--record")
  try:
    for robot, report in robots():
      drive(robot, record, report)
  except UnansweredError as error:
    raise UserError(
      f"got no answer from {_SERVER.value} ({error}); start launch/serve.py "
      "there"
    ) from error


def end_as_by_ctrl_c(*signals: signal.Signals) -> None:
  """Lets signals stop the robot and keep its episode; by default they do not.

  One that is ignored stays so: nohup means it.
  """
  for number in signals:
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.default_int_handler)


def drive(robot: Robot, record, report: Callable[[EpisodeLog], None]) -> None:
  """Runs one episode, records and reports it."""
  client = RobotClient(
    _SERVER.value,
    read_token(),
    getattr(robot, "expects", None),
  )
  metadata = client.metadata()
  config = LoopConfig(
    rate_hz=rate_hz(metadata["control_hz"]),
    execute=_EXECUTE.value,
    waits=_WAIT.value,
    decay=_DECAY.value,
    timeout_s=_TIMEOUT.value,
    max_steps=_MAX_STEPS.value,
  )
  limits = Limits.of(
    metadata,
    max_speed=_MAX_SPEED.value,
    max_turn=_MAX_TURN.value,
    workspace=workspace(_WORKSPACE.value),
  )
  log = EpisodeLog()
  try:
    ControlLoop(robot, client, limits, config).run(log)
  finally:
    if record:
      path = robot_log.write(record, log, metadata, config.rate_hz)
      print(f"recorded: {path or 'no step'}")
  report(log)


def rate_hz(of_policy: float | None) -> float:
  """Returns the loop's rate.

  Raises:
    UserError: neither the policy nor a flag says it.
  """
  rate = of_policy if _RATE.value is None else _RATE.value
  if not rate:
    raise UserError(
      "got a policy that does not say its robot's rate, expected --rate_hz, "
      "steps per second as in its training data"
    )
  return rate


def workspace(values: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
  """Reads the corners of the workspace.

  Raises:
    UserError: not six numbers, or an empty box.
  """
  if not values:
    return None
  try:
    low, high = np.asarray([float(v) for v in values]).reshape(2, 3)
    if not (low < high).all():
      raise ValueError("the least is not below the largest")
  except ValueError as error:
    raise UserError(
      f"got --workspace={','.join(values)} ({error}), expected x,y,z,x,y,z"
    ) from error
  return low, high


def robots() -> Iterator[tuple[Robot, Callable[[EpisodeLog], None]]]:
  """Yields a robot for each episode, and a function that reports its end."""
  if _ROBOT.value == "tabletop":
    yield from tabletop_trials()
    return
  if not import_path.is_import_path(_ROBOT.value):
    raise UserError(
      f"got --robot={_ROBOT.value}, expected tabletop or an import path such "
      "as my_lab.arm:make"
    )
  if not _INSTRUCTION.value:
    raise UserError("got no --instruction, expected what the robot is to do")
  make = import_path.load(_ROBOT.value, "--robot")
  for _ in range(_EPISODES.value):
    yield (
      make(_INSTRUCTION.value),
      lambda log: print(f"{log.reason} after {len(log.steps)} steps"),
    )


def open_tabletop(text: str):
  """Opens the tabletop that a JSON object describes.

  Raises:
    UserError: no JSON, or other fields than the tabletop's.
  """
  from rt2_jax.envs.tabletop.benchmark import Tabletop

  try:
    return Tabletop(**json.loads(text))
  except UserError:
    raise
  except (ValueError, TypeError) as error:
    raise UserError(
      f"got --tabletop={text} ({error}), expected JSON such as "
      '{"image_size": 96, "concepts": ["apple", "flag of Japan"]}'
    ) from error


def tabletop_trials() -> Iterator[tuple[Robot, Callable[[EpisodeLog], None]]]:
  """Yields the trials of the simulated tabletop; prints how many succeed."""
  from rt2_jax.rollouts import results
  from rt2_jax.rollouts.simulated_robot import SimulatedRobot
  from rt2_jax.rollouts.trial import choose_suites

  benchmark = open_tabletop(_TABLETOP.value)
  names = choose_suites(benchmark.suites, _SUITES.value)
  trials = benchmark.trials(names, _EPISODES.value, _SEED.value)
  env = benchmark.make()
  reasons: collections.Counter[str] = collections.Counter()
  for trial in trials:
    robot = SimulatedRobot(env, benchmark.action_space, trial)
    yield robot, lambda log: None
    reasons[robot.outcome.reason] += 1
    print(f"{trial.suite} {trial.number}: {robot.outcome.reason}", flush=True)
  numbers = results.rate(reasons[benchmark.reasons[0]], len(trials))
  print(json.dumps(numbers | {"outcomes": reasons}))


if __name__ == "__main__":
  flags.mark_flags_as_required(["server", "robot"])
  app.run(main)
