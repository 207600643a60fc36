"""Robot datasets: what each one's fields mean, in one short function each.

Conventions of a canonical action (reference: RT-2 paper, section 3.2, and
Octo's and OpenVLA's published mappings): translations in metres, rotations in
radians, gripper absolute with 1 = open, terminate 1.0 on the step that ends an
episode. To add a dataset, write its function and its row in `DATASETS`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from rt2_jax.actions import (
  LANGUAGE_TABLE,
  RT2,
  TABLETOP,
  ActionSpace,
  Dimension,
)
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.input_pipeline import index, kept_index, rlds, splits
from rt2_jax.input_pipeline.code_hash import code_hash
from rt2_jax.input_pipeline.episodes import (
  Canonical,
  Episode,
  Filters,
  make_filters,
)
from rt2_jax.input_pipeline.grippers import absolute_gripper, binary_gripper
from rt2_jax.input_pipeline.step_index import StepIndex
from rt2_jax.observation import ONE_CAMERA, PRIMARY, ObservationSpec
from rt2_jax.ranges import more_than
from rt2_jax.storage import Storage, open_storage
from rt2_jax.tokenizer import place_words

_COMPARED: set[str] = set()  # hashes of functions that this process has too
_PLACES = 16  # of a coordinate in plans, as data/make_web_pictures.py points


def fractal20220817_data(episode: Episode) -> Canonical:
  """RT-1's kitchen data (Google robot, 3 Hz); base motion is left out."""
  action = [
    # One-hot, 0 = terminate.
    episode.numbers("action/terminate_episode", 3, (0, 1))[:, :1],
    episode.numbers("action/world_vector", 3),
    episode.numbers("action/rotation_delta", 3),
    absolute_gripper(
      episode.numbers("action/gripper_closedness_action", 1, (-1, 1))
    ),
  ]
  return Canonical(
    episode.texts("observation/natural_language_instruction"),
    np.concatenate(action, -1, dtype=np.float32),
  )


def bridge_dataset(episode: Episode) -> Canonical:
  """BridgeData V2 as Berkeley released it (WidowX, 5 Hz), commanded actions.

  It has no terminate field; `is_last` marks the end, so that an episode that
  was cut short does not teach the robot to stop.
  """
  action = episode.numbers("action", 7)
  columns = [
    episode.numbers("is_last", 1, (0, 1)),
    action[:, :6],
    binary_gripper(episode.in_range("action", action[:, 6:], 0, 1)),
  ]
  return Canonical(
    episode.texts("language_instruction"),
    np.concatenate(columns, -1, dtype=np.float32),
  )


def bridge_dataset_relabelled(episode: Episode) -> Canonical:
  """The same, acting towards the state that was reached at the next step.

  The motion is what the arm did rather than what it was told to do, as Octo
  and OpenVLA train on Bridge. The last step has no next one and is dropped.
  """
  commanded = bridge_dataset(episode)
  state = episode.numbers("observation/state", 7)
  reached = np.diff(state[:, :6], axis=0)
  reached[:, 3:] = (reached[:, 3:] + np.pi) % (2 * np.pi) - np.pi
  terminate, gripper = commanded.action[1:, :1], commanded.action[:-1, 7:]
  return Canonical(
    commanded.instruction[:-1],
    np.concatenate([terminate, reached, gripper], -1, dtype=np.float32),
    steps=np.arange(episode.length - 1),
  )


def bridge(episode: Episode) -> Canonical:
  """BridgeData as the Open X-Embodiment copy in TFDS has it."""
  action = [
    episode.numbers("action/terminate_episode", 1, (0, 1)),
    episode.numbers("action/world_vector", 3),
    episode.numbers("action/rotation_delta", 3),
    episode.numbers("action/open_gripper", 1, (0, 1)),
  ]
  return Canonical(
    episode.texts("observation/natural_language_instruction"),
    np.concatenate(action, -1, dtype=np.float32),
  )


def language_table(episode: Episode) -> Canonical:
  """Language-Table, real and simulated (xArm, 10 Hz): where to push, in m.

  The instruction comes as UTF-8 codes, padded with zeros.
  """
  name = "observation/instruction"
  codes = episode.in_range(name, episode[name], 0, 255).astype(np.uint8)
  try:
    texts = [bytes(row).rstrip(b"\0").decode() for row in codes]
  except UnicodeDecodeError as error:
    raise UserError(
      f"{episode.where}: got codes in {name!r} that are not UTF-8 ({error}); "
      "repair or drop this episode"
    ) from error
  return Canonical(texts, episode.numbers("action", 2))


def libero(episode: Episode) -> Canonical:
  """LIBERO without no-ops, as OpenVLA regenerated it (Panda, 20 Hz).

  Actions are in units of the controller's largest step, 5 cm and 0.5 rad;
  its gripper closes at +1.
  """
  action = episode.numbers("action", 7, (-1, 1))
  columns = [
    episode.numbers("is_last", 1, (0, 1)),
    0.05 * action[:, :3],
    0.5 * action[:, 3:6],
    (1.0 - np.clip(action[:, 6:], -1.0, 1.0)) / 2.0,
  ]
  return Canonical(
    episode.texts("language_instruction"),
    np.concatenate(columns, -1, dtype=np.float32),
  )


def tabletop(episode: Episode) -> Canonical:
  """The simulated tabletop (5 Hz), as data/make_tabletop.py records it."""
  action = episode.numbers("action", 8)
  episode.in_range("action", action[:, [0, 7]], 0, 1)  # terminate, gripper
  return Canonical(episode.texts("language_instruction"), action)


def tabletop_with_plan(episode: Episode) -> Canonical:
  """The same; before it acts the robot names what it acts on, and where it is.

  The task's thing, then where it belongs, if anywhere, each with the middle of
  its box at that step: `apple <loc0416><loc0608>, heart <loc0096><loc0480>`.
  """
  things = []
  for role in ("target", "reference"):
    name = "".join(episode.record.texts(f"episode_metadata/{role}"))
    boxes = episode.numbers(f"{role}_box", 4, (0, 1))
    if name:
      things.append([f"{name} {place_words(box, _PLACES)}" for box in boxes])
  if not things:
    raise UserError(
      f"{episode.where}: got no name in 'episode_metadata/target', expected "
      "the thing that the robot acts on; record the episode again"
    )
  plan = [", ".join(step) for step in zip(*things, strict=True)]
  return tabletop(episode)._replace(plan=plan)


def _pose(episode: Episode) -> np.ndarray:
  """Bridge's state, [T, 7]: position, Euler angles, gripper with 1 = open."""
  return episode.numbers("observation/state", 7)


def _pose_and_fingers(episode: Episode) -> np.ndarray:
  """LIBERO's state, [T, 8]: position, axis times angle, two fingers."""
  return episode.numbers("observation/state", 8)


def _pose_space(name: str, *gripper: Dimension) -> ActionSpace:
  """Where a gripper is, in bounds that hold a table-top arm's reach."""
  position = (Dimension(axis, "m", -1.5, 1.5) for axis in "xyz")
  angles = ("roll", "pitch", "yaw")
  rotation = (Dimension(a, "rad", -math.pi, math.pi) for a in angles)
  return ActionSpace(name, "robot base", (*position, *rotation, *gripper))


_BRIDGE_STATE = rlds.RobotState(
  _pose_space("bridge_state", Dimension("gripper", "open")), _pose
)
_LIBERO_STATE = rlds.RobotState(
  _pose_space(
    "libero_state",
    Dimension("finger_1", "m", -0.05, 0.05),
    Dimension("finger_2", "m", -0.05, 0.05),
  ),
  _pose_and_fingers,
)


@dataclasses.dataclass(frozen=True)
class RobotDataset:
  """What a dataset's records mean.

  Attributes:
    space: what the numbers of `standardize`'s actions are.
    cameras: the image feature of each camera, by the camera's name.
    standardize: an episode's small features in canonical form.
    state: the robot's state; None where the records hold none.
  """

  space: ActionSpace
  cameras: Mapping[str, str]
  standardize: Callable[[Episode], Canonical]
  state: rlds.RobotState | None = None


_IMAGE = {PRIMARY: "observation/image"}
_IMAGES = {
  PRIMARY: "observation/image_0",
  "secondary": "observation/image_1",
  "tertiary": "observation/image_2",
}
DATASETS: Mapping[str, RobotDataset] = {
  "fractal20220817_data": RobotDataset(RT2, _IMAGE, fractal20220817_data),
  "bridge_dataset": RobotDataset(RT2, _IMAGES, bridge_dataset, _BRIDGE_STATE),
  "bridge_dataset_relabelled": RobotDataset(
    RT2, _IMAGES, bridge_dataset_relabelled, _BRIDGE_STATE
  ),
  "bridge": RobotDataset(RT2, _IMAGE, bridge),
  "language_table": RobotDataset(
    LANGUAGE_TABLE, {PRIMARY: "observation/rgb"}, language_table
  ),
  "libero": RobotDataset(
    RT2, _IMAGE | {"wrist": "observation/wrist_image"}, libero, _LIBERO_STATE
  ),
  "tabletop": RobotDataset(TABLETOP, _IMAGE, tabletop),
  "tabletop_with_plan": RobotDataset(TABLETOP, _IMAGE, tabletop_with_plan),
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One robot source of a mixture, as a config names it.

  Attributes:
    dataset: a key of `DATASETS`: how to read the records.
    path: TFDS version folder, local or e.g. `gs://…`.
    split: split to train on, or a part of its episodes such as "train[:99%]",
      see `splits.Part`.
    eval_split: split to evaluate on.
    weight: share of the mixture, relative to the other robot sources.
    bounds: [low, high] in physical units for dimensions whose bins should
      span another range than the action space's own; or "q01_q99", those that
      `statistics` suggests.
    state_bounds: [low, high] in physical units of the robot's state, likewise.
    statistics: file that `data/compute_stats.py` wrote for this dataset, which
      checkpoints keep; "" names none.
    filters: episodes and steps to leave out, see `episodes.Filters`.
  """

  dataset: str
  path: str
  split: str = "train"
  eval_split: str = "train"
  weight: Annotated[float, more_than(0)] = 1.0
  bounds: Mapping[str, Sequence[float]] | str = dataclasses.field(
    default_factory=dict
  )
  state_bounds: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )
  statistics: str = ""
  filters: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: dataclasses.asdict(Filters())
  )

  @property
  def space(self) -> ActionSpace:
    """The dataset's action space with this source's bounds.

    Raises:
      UserError: no such dataset, or bounds that do not fit it.
    """
    space = robot_dataset(self.dataset).space
    if not isinstance(self.bounds, str):
      return space.with_bounds(self.bounds)
    if self.bounds != "q01_q99":
      raise unknown_name("bounds", self.bounds, ["q01_q99"])
    if not self.statistics:
      raise UserError(
        f"got bounds 'q01_q99' for {self.dataset!r} without statistics, "
        "expected a file that data/compute_stats.py wrote; name it as this "
        "source's `statistics`"
      )
    return space.with_bounds(self.read_statistics()["bounds"])

  def observation_spec(
    self, wanted: ObservationSpec, reads_state: bool
  ) -> ObservationSpec:
    """Says what a model reads of this source's robot.

    Args:
      wanted: cameras and history of the model.
      reads_state: whether the model reads a robot's state, if it has one.

    Raises:
      UserError: the dataset has none of the cameras, or bounds that do not fit
        its state.
    """
    known = robot_dataset(self.dataset)
    missing = [name for name in wanted.cameras if name not in known.cameras]
    if len(missing) == len(wanted.cameras):
      raise UserError(
        f"got cameras {list(wanted.cameras)} for dataset {self.dataset!r}, "
        f"expected at least one of {list(known.cameras)}; change "
        "config.observation.cameras"
      )
    state = None
    if reads_state and known.state:
      state = known.state.space.with_bounds(self.state_bounds)
    return dataclasses.replace(wanted, missing=tuple(missing), state=state)

  def read_statistics(self) -> dict[str, Any]:
    """What the file `statistics` holds; empty when none is named.

    Raises:
      UserError: no such file, or the figures of another dataset.
    """
    if not self.statistics:
      return {}
    try:
      figures = json.loads(pathlib.Path(self.statistics).read_text())
      found, _ = figures["dataset"], figures["bounds"]
    except (OSError, ValueError, LookupError, TypeError) as error:
      raise UserError(
        f"got statistics {self.statistics!r}, which cannot be read "
        f"({error!r}), expected a file that data/compute_stats.py wrote"
      ) from error
    if found != self.dataset:
      raise UserError(
        f"got statistics {self.statistics!r} of dataset {found!r}, expected "
        f"those of {self.dataset!r}; run data/compute_stats.py for it"
      )
    return figures


def robot_dataset(name: str) -> RobotDataset:
  """Looks up a dataset. Raises UserError naming the known ones."""
  if name not in DATASETS:
    raise unknown_name("dataset", name, DATASETS)
  return DATASETS[name]


def open_source(
  config: SourceConfig,
  split: str,
  spec: ObservationSpec = ONE_CAMERA,
  index_folder: str | None = None,
  num_workers: int | None = None,
  max_skipped: int = 0,
) -> rlds.StepSource:
  """Indexes one split of a dataset, or loads its index.

  Args:
    config: the source.
    split: which of its splits.
    spec: what is read of an observation, from `SourceConfig.observation_spec`.
    index_folder: see `index.load_or_build`, as of the last two.
    num_workers: likewise.
    max_skipped: likewise.

  Raises:
    UserError: bad data, or nothing is left after the filters.
  """
  known = robot_dataset(config.dataset)
  cameras = [known.cameras[name] for name in spec.present]
  state = known.state if spec.state else None
  reading = rlds.Reading(tuple(cameras), known.standardize, known.space, state)
  chosen = make_filters(config.filters)
  chosen.check(known.space)
  # All fields: the index of a config that spells defaults out is the same.
  filters = dataclasses.asdict(chosen)
  storage = open_storage(config.path)
  function = _functions_hash(reading)
  recipe = kept_index.Recipe(
    index_shard,
    arguments=(reading, filters, function),
    name=(config.dataset, filters, spec.present, bool(state)),
    depends={
      "cameras": cameras,
      "action space": _conventions(known.space),
      "state": _conventions(state.space) if state else None,
      "dataset function": function,
      "reader": code_hash(rlds.index_episodes, Filters),
    },
  )
  found = splits.find_split(storage, config.path, split)
  shards, damaged = index.load_or_build(
    found, recipe, index_folder, num_workers, max_skipped
  )
  steps = StepIndex.merge(shards, damaged)
  if not len(steps):
    problems = [f"; {loss.problem}" for loss in damaged[:1]]
    raise UserError(
      f"got no step in split {split!r} of {config.path} after the filters "
      f"{filters}; relax them{''.join(problems)}"
    )
  return rlds.StepSource(storage, steps, known.space, spec.history)


def _functions_hash(reading: rlds.Reading) -> str:
  """Names the code that reads the records."""
  if reading.state is None:
    return code_hash(reading.standardize)
  return code_hash(reading.standardize, reading.state.read)


def _conventions(space: ActionSpace) -> list[Any]:
  """What a space says about numbers; bounds are no part of an index."""
  dimensions = [[d.name, d.unit, d.kind, *d.values] for d in space.dimensions]
  return [space.name, space.frame, dimensions]


def index_shard(
  storage: Storage,
  path: str,
  reading: rlds.Reading,
  filters: Mapping[str, Any],
  function: str,
) -> kept_index.Columns:
  """One shard's columns, see `rlds.index_episodes`.

  Raises:
    UserError: `function` is not the hash of the dataset's functions: another
      process has found other code under their names.
  """
  # Before the first shard: a function may keep what it has met in a global.
  found = function if function in _COMPARED else _functions_hash(reading)
  _COMPARED.add(found)
  if found != function:
    raise UserError(
      f"{path}: got a dataset function with hash {found} in a process that "
      f"indexes, expected {function} as in the program; define the function in "
      "a module that both import"
    )
  return rlds.index_episodes(storage, path, reading, make_filters(filters))
