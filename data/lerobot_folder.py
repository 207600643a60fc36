"""LeRobot folders as their versions lay them out: v2.0, v2.1 and v3.0.

  v2  meta/{info.json, episodes.jsonl, tasks.jsonl}, a parquet file and a video
      of each camera for each episode
  v3  meta/{info.json, tasks.parquet, episodes/…parquet}, files that hold
      several episodes; an episode says which rows and seconds are its own

Neither torch nor lerobot is needed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.recordings import as_table
from rt2_jax.errors import UserError

_VERSION = re.compile(r"v(2\.[01]|3\.\d+)")
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError)
_MALFORMED += (pa.ArrowException,)
_OLD_VIDEOS = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_"
_OLD_VIDEOS += "{episode_index:06d}.mp4"


class VideoSpan(NamedTuple):
  """Where an episode's frames lie.

  Attributes:
    path: of the video.
    start: second of the video at which the episode begins.
    shared: whether the video holds other episodes too.
  """

  path: Path
  start: float
  shared: bool


@dataclasses.dataclass(frozen=True)
class LeRobotFolder:
  """What `meta/` says.

  Attributes:
    root: the folder.
    info: meta/info.json.
    episodes: one row each, in order.
    tasks: texts by their numbers.
    video_path: template of a video's place in the folder.
  """

  root: Path
  info: Mapping[str, Any]
  episodes: Sequence[Mapping[str, Any]]
  tasks: Mapping[int, str]
  video_path: str

  @classmethod
  def open(cls, root: Path, video_path: str = "") -> LeRobotFolder:
    """Reads `meta/`.

    Args:
      root: the folder.
      video_path: template in place of that of info.json.

    Raises:
      UserError: no such folder, one of another version, or a damaged one.
    """
    try:
      info = _read_json(root / "meta/info.json")
      version = str(info.get("codebase_version"))
      if not _VERSION.fullmatch(version):
        raise UserError(
          f"{root}: got LeRobot data of version {version}, expected v2.0, v2.1 "
          "or v3.0; convert it with LeRobot's own program"
        )
      read = _read_new_meta if version.startswith("v3") else _read_old_meta
      episodes, tasks = read(root / "meta")
      _check_fields(info, episodes)
      episodes = _without_copies(root, episodes)
    except UserError:
      raise
    except _MALFORMED as error:
      raise UserError(
        f"{root / 'meta'}: got files that are not LeRobot's ({error!r:.200}), "
        "expected info.json with fps, data_path and features of some dtype and "
        "shape, episodes with episode_index, tasks with task_index; copy them "
        "again"
      ) from error
    template = video_path or info.get("video_path") or _OLD_VIDEOS
    return cls(root, info, episodes, tasks, template)

  @property
  def features(self) -> Mapping[str, Any]:
    return self.info["features"]

  def cameras(self) -> list[str]:
    """Names the features that hold pictures; depth is none."""
    return [
      name
      for name, feature in self.features.items()
      if feature["dtype"] in ("video", "image") and not _is_depth(feature)
    ]

  def column_names(self, feature: str) -> list[str] | None:
    """Names the numbers of a feature as info.json does; None: not at all."""
    return _flat(self.features[feature].get("names"))

  def data_path(self, number: int) -> Path:
    """Finds the parquet file of an episode."""
    return self._place(self.info["data_path"], number, "data")

  def video(self, number: int, camera: str) -> VideoSpan:
    """Finds the frames of an episode."""
    key = f"videos/{camera}"
    path = self._place(self.video_path, number, key, video_key=camera)
    start = self.episodes[number].get(f"{key}/from_timestamp", 0.0)
    return VideoSpan(
      path, float(start), f"{key}/from_timestamp" in self.episodes[number]
    )

  def rows(self, number: int, columns: Sequence[str]) -> pa.Table:
    """Reads an episode's rows.

    Raises:
      UserError: the file is damaged, or holds other rows than `meta/` says.
    """
    path, episode = self.data_path(number), self.episodes[number]
    index = episode["episode_index"]
    try:
      table = pq.read_table(
        path,
        columns=[*columns, "episode_index"],
        filters=[("episode_index", "=", index)],
      )
    except (OSError, pa.ArrowException, KeyError) as error:
      raise UserError(
        f"{path}: got a parquet file that does not read ({error}); copy it "
        "again"
      ) from error
    length = episode.get("length", table.num_rows)
    if not table.num_rows or table.num_rows != length:
      raise UserError(
        f"{path}: got {table.num_rows} rows of episode {index}, expected "
        f"{length} as meta/ says; copy the file again"
      )
    return table

  def _place(self, template: str, number: int, key: str, **fields) -> Path:
    episode = self.episodes[number]
    index = episode["episode_index"]
    chunk = index // max(int(self.info.get("chunks_size", 1000)), 1)
    fields |= {
      "episode_index": index,
      "episode_chunk": chunk,
      "chunk_index": episode.get(f"{key}/chunk_index", 0),
      "file_index": episode.get(f"{key}/file_index", 0),
    }
    try:
      path = self.root / template.format(**fields)
    except (KeyError, ValueError, IndexError) as error:
      raise UserError(
        f"{self.root}: got the path {template!r} in meta/info.json ({error!r}),"
        f" expected one of the fields {', '.join(sorted(fields))}"
      ) from error
    # Some write the episode's number where its chunk's belongs.
    repaired = template.replace("chunk-{episode_index", "chunk-{episode_chunk")
    return path if path.exists() else self.root / repaired.format(**fields)


def _check_fields(info: Mapping[str, Any], episodes: Sequence[Mapping]):
  """Raises one of `_MALFORMED` where a field is missing that is read later."""
  fields = [info["data_path"]]
  fields += [(f["dtype"], f["shape"]) for f in info["features"].values()]
  fields += [row["episode_index"] for row in episodes]
  if not float(info["fps"]) > 0:
    raise ValueError(f"fps = {info['fps']}")


def _without_copies(root: Path, episodes: Sequence[Mapping]) -> list[Mapping]:
  """Lists each episode once: a recorder that goes on may add a line again.

  Raises:
    UserError: two lines say different things of an episode.
  """
  known: dict[int, Mapping] = {}
  for row in episodes:
    index = row["episode_index"]
    if known.setdefault(index, row) != row:
      raise UserError(
        f"{root / 'meta'}: got two lines of episode {index}, {known[index]} "
        f"and {row}, expected one; remove the wrong one"
      )
  return list(known.values())


def _read_old_meta(folder: Path) -> tuple[list[dict], dict[int, str]]:
  episodes = _read_lines(folder / "episodes.jsonl")
  tasks = _read_lines(folder / "tasks.jsonl")
  return episodes, {int(row["task_index"]): row["task"] for row in tasks}


def _read_new_meta(folder: Path) -> tuple[list[dict], dict[int, str]]:
  """Statistics stay where they are: they would fill the memory."""
  episodes = []
  for path in sorted((folder / "episodes").rglob("*.parquet")):
    names = pq.read_schema(path).names
    wanted = [name for name in names if not name.startswith("stats/")]
    episodes += pq.read_table(path, columns=wanted).to_pylist()
  if not episodes:
    raise UserError(
      f"{folder / 'episodes'}: got no parquet file; copy it again"
    )
  episodes.sort(key=lambda row: row["episode_index"])
  rows = pq.read_table(_existing(folder / "tasks.parquet")).to_pylist()
  # The text is the table's index in pandas, which names it as it likes.
  return episodes, {
    int(row["task_index"]): next(
      value for name, value in row.items() if name != "task_index"
    )
    for row in rows
  }


def _existing(path: Path) -> Path:
  if not path.is_file():
    raise UserError(f"got no file {path}, expected a LeRobot folder")
  return path


def _read_json(path: Path) -> Any:
  file = _existing(path)
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path}: got no JSON ({error}); copy it again") from error


def _read_lines(path: Path) -> list[dict]:
  lines = _existing(path).read_text(encoding="utf-8").split("\n")
  try:
    return [json.loads(line) for line in lines if line.strip()]
  except ValueError as error:
    raise UserError(f"{path}: got no JSON ({error}); copy it again") from error


def _is_depth(feature: Mapping[str, Any]) -> bool:
  info = feature.get("info") or feature.get("video_info") or {}
  return bool(info.get("video.is_depth_map"))


def _flat(names: Any) -> list[str] | None:
  """Names in one list; they come in lists of lists, and in objects."""
  if isinstance(names, Mapping):
    if all(isinstance(value, int) for value in names.values()):
      return sorted(names, key=names.get)
    names = list(names.values())
  if isinstance(names, str):
    return [names]
  if not isinstance(names, Sequence):
    return None
  return [name for each in names for name in _flat(each) or ()]


def matrix(table: pa.Table, name: str) -> np.ndarray:
  """Reads a column of lists or numbers, float64[T, n].

  Raises:
    UserError: rows of different lengths, or without a number.
  """
  return as_table(table[name].to_pylist(), f"values of {name!r}")
