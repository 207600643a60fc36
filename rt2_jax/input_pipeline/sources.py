"""Robot sources: a dataset's records as a config names them, indexed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from rt2_jax import shipped
from rt2_jax.actions import ActionSpace
from rt2_jax.byte_ranges import Storage, open_storage
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.input_pipeline import index, kept_index, rlds, splits
from rt2_jax.input_pipeline.code_hash import code_hash
from rt2_jax.input_pipeline.dataset_names import check_name, robot_dataset
from rt2_jax.input_pipeline.datasets import RobotDataset
from rt2_jax.input_pipeline.filters import Filters, make_filters
from rt2_jax.input_pipeline.step_index import StepIndex, StepSource
from rt2_jax.observation import ONE_CAMERA, ObservationSpec
from rt2_jax.ranges import at_least, between, more_than
from rt2_jax.storage import locate

_COMPARED: set[str] = set()  # hashes of functions that this process has too


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One robot source of a mixture, as a config names it.

  Attributes:
    dataset: what the records mean, see `dataset_names.robot_dataset`.
    path: TFDS version folder, local or e.g. `gs://…`; or the folder above it
      of a dataset with one version.
    split: split to train on, or a part of its episodes such as "train[:99%]",
      see `splits.Part`.
    eval_split: split to evaluate on.
    weight: fraction of the mixture, relative to the other robot sources.
    weight_by: "size" multiplies the weight by the source's number of steps,
      "root_size" by the root of it; "" takes it as it is.
    cameras: by the model's name of a camera another one of the dataset, or an
      image feature; "" hides the camera.
    template: the robot's question, as `prompt.template`; "" for that one.
    horizon: actions of an answer; 0 for `actions.horizon`.
    augmentation: fraction of `config.augmentation` by which this source's
      images are changed.
    stride: recorded steps that make one step, see `resampling.resample`.
    bounds: [low, high] in physical units for dimensions whose bins should
      span another range than the action space's own; or "q01_q99", those that
      `statistics` suggests.
    state_bounds: [low, high] in physical units of the robot's state, likewise.
    statistics: file that `data/compute_stats.py` wrote for this dataset, which
      checkpoints keep; "" names none.
    filters: episodes and steps to leave out, see `filters.Filters`.
  """

  dataset: str
  path: str
  split: str = "train"
  eval_split: str = "train"
  weight: Annotated[float, more_than(0)] = 1.0
  weight_by: str = ""
  template: str = ""
  horizon: Annotated[int, at_least(0)] = 0
  augmentation: Annotated[float, between(0, 1)] = 1.0
  cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
  stride: Annotated[int, at_least(1)] = 1
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
  def folder(self) -> str:
    """`path` with `~` and `$VAR` expanded."""
    return str(locate(self.path, "a source's path"))

  @property
  def robot(self) -> RobotDataset:
    """The meaning of the records, with this source's cameras.

    Raises:
      UserError: as `robot_dataset`.
    """
    known = robot_dataset(self.dataset, self.folder)
    chosen = {
      name: known.cameras.get(feature, feature)
      for name, feature in self.cameras.items()
    }
    cameras = {**known.cameras, **chosen}
    shown = {name: feature for name, feature in cameras.items() if feature}
    return dataclasses.replace(known, cameras=shown)

  @property
  def control_hz(self) -> float | None:
    """Steps per second, as a policy acts; None where the data do not say."""
    rate_hz = self.robot.rate_hz
    return rate_hz and rate_hz / self.stride

  @property
  def prompt(self) -> dict[str, str]:
    """The fields of `Prompt` that are this source's own."""
    return {"template": self.template} if self.template else {}

  @property
  def space(self) -> ActionSpace:
    """The dataset's action space with this source's bounds.

    Raises:
      UserError: no such dataset, or bounds that do not fit it.
    """
    space = self.robot.space
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
    figures = self.read_statistics()
    measured = figures.get("stride", 1)
    if measured != self.stride:
      raise UserError(
        f"got statistics {self.statistics!r} of stride {measured} for stride "
        f"{self.stride}, whose steps move further or less far; run "
        f"data/compute_stats.py with --stride={self.stride}"
      )
    return space.with_bounds(figures["bounds"])

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
    known = self.robot
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
    """Reads the file `statistics`; empty when none is named.

    Raises:
      UserError: no such file, or the figures of another dataset.
    """
    if not self.statistics:
      return {}
    try:
      file = shipped.find(self.statistics)
      path = locate(file, "a source's statistics")
      figures = json.loads(path.read_text())
      found, _ = figures["dataset"], figures["bounds"]
    except UserError:
      raise
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


def open_source(
  config: SourceConfig,
  split: str,
  spec: ObservationSpec = ONE_CAMERA,
  index_folder: str | None = None,
  num_workers: int | None = None,
  max_skipped: int = 0,
) -> StepSource:
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
  known = config.robot
  cameras = [known.cameras[name] for name in spec.present]
  state = known.state if spec.state else None
  reading = rlds.Reading(
    tuple(cameras), known.standardize, known.space, state, config.stride
  )
  chosen = make_filters(config.filters)
  chosen.check(known.space)
  # All fields: the index of a config that spells defaults out is the same.
  filters = dataclasses.asdict(chosen)
  storage = open_storage(config.folder)
  function = _functions_hash(reading)
  recipe = kept_index.Recipe(
    index_shard,
    arguments=(reading, filters, function),
    name=(config.dataset, filters, spec.present, bool(state), config.stride),
    depends={
      "version": known.version,
      "cameras": cameras,
      "action space": _conventions(known.space),
      "state": _conventions(state.space) if state else None,
      "dataset function": function,
      "reader": code_hash(rlds.index_episodes, Filters),
    },
  )
  folder = splits.version_folder(storage, config.folder)
  found = splits.find_split(storage, folder, split)
  check_name(config.dataset, config.folder, found.dataset, storage)
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
  return StepSource(storage, steps, known.space, spec.history)


def _functions_hash(reading: rlds.Reading) -> str:
  """Names the code that reads the records."""
  if reading.state is None:
    return code_hash(reading.standardize)
  return code_hash(reading.standardize, reading.state.read)


def _conventions(space: ActionSpace) -> list[Any]:
  """Lists the conventions of a space; bounds are no part of an index."""
  dimensions = [[d.name, d.unit, d.kind, *d.values] for d in space.dimensions]
  return [space.name, space.frame, dimensions]


def index_shard(
  storage: Storage,
  path: str,
  reading: rlds.Reading,
  filters: Mapping[str, Any],
  function: str,
) -> kept_index.Columns:
  """Indexes one shard, see `rlds.index_episodes`.

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
