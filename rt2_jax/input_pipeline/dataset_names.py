"""Robot datasets by name: what records mean, and whether they are those.

A name is a row of `datasets.DATASETS`, an import path, or a robot.json.
"""

from __future__ import annotations

import dataclasses
import re

from rt2_jax import import_path
from rt2_jax.byte_ranges import Storage, open_storage
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.input_pipeline import description, splits
from rt2_jax.input_pipeline.datasets import DATASETS, RobotDataset


def robot_dataset(name: str, path: str) -> RobotDataset:
  """Looks up what a dataset's records mean.

  Args:
    name: a key of `DATASETS`; "module:attribute", a `RobotDataset` of another
      package; "robot.json", the description beside the data; or the path of
      one.
    path: the folder of the records.

  Raises:
    UserError: no such dataset, module or file, or fields that do not belong
      into a description.
  """
  if import_path.is_import_path(name):
    return import_path.load(name, "a source's dataset", RobotDataset)
  if not name.endswith(".json"):
    if name not in DATASETS:
      raise unknown_name("dataset", name, [*DATASETS, description.FILE])
    return DATASETS[name]
  if name == description.FILE:
    name = _beside(splits.version_folder(open_storage(path), path))
  found = description.read(name)
  if not isinstance(found, str):
    return found.to_dataset()
  # Said to be of that dataset, whatever dataset_info.json calls it.
  return dataclasses.replace(robot_dataset(found, path), recorded_as="")


def _beside(path: str) -> str:
  return f"{path.rstrip('/')}/{description.FILE}"


def check_name(dataset: str, path: str, found: str, storage: Storage):
  """Compares what a folder calls itself with the dataset it is taken for.

  A robot.json beside the records that names the same dataset confirms it.

  Args:
    dataset: as a name of `robot_dataset`.
    path: the folder of the records.
    found: what dataset_info.json says; "" if it says nothing.
    storage: where the folder lies.

  Raises:
    UserError: the folder holds another dataset.
  """
  pattern = robot_dataset(dataset, path).recorded_as
  if not found or not pattern or re.fullmatch(pattern, found):
    return
  beside = _beside(splits.version_folder(storage, path))
  if (
    beside in storage.names(beside.rpartition("/")[0])
    and description.read(beside) == dataset
  ):
    return
  raise UserError(
    f"got records of dataset {found!r} in {path}, expected those of "
    f"{dataset!r}, whose fields mean other things; change the source's "
    f'dataset, or write {{"dataset": "{dataset}"}} to {beside} if they mean '
    "the same"
  )
