"""Small recordings in the formats that importers read."""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

RATE = 10
TWO_ARMS = [
  f"{side}_{joint}"
  for side in ("left", "right")
  for joint in (*(f"joint_{i}" for i in range(12)), "gripper")
]
TASKS = ["fold the towel", "open the drawer"]


def numbers(seed: int, length: int, width: int = len(TWO_ARMS)) -> np.ndarray:
  """Smooth numbers float32[T, width]; the grippers' lie in [0, 100]."""
  rng = np.random.default_rng(seed)
  start, end = rng.uniform(-1, 1, (2, width))
  values = start + (end - start) * np.linspace(0, 1, length)[:, None]
  if width == len(TWO_ARMS):
    values[:, [12, 25]] = 50 + 50 * values[:, [12, 25]]
  return values.astype(np.float32)


def pictures(seed: int, length: int, size=(48, 64)) -> np.ndarray:
  """Smooth pictures that a codec keeps apart, uint8[T, H, W, 3]."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (length, 3, 4, 3), np.uint8)
  height, width = size
  return np.stack(
    [
      np.asarray(Image.fromarray(c).resize((width, height), Image.BILINEAR))
      for c in coarse
    ]
  )


def write_video(path: Path, frames: np.ndarray, codec: str, rate: int = RATE):
  """Encodes uint8[T, H, W, 3]; a key frame in ten, as LeRobot has them."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.gop_size = 4
    stream.options = {"preset": "12"} if "av1" in codec else {"bf": "2"}
    stream.time_base = Fraction(1, rate)
    for frame in frames:
      for packet in stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")):
        container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)


def read_video(path: Path) -> list[np.ndarray]:
  """Every frame of a video as PyAV decodes it."""
  with av.open(str(path)) as container:
    return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


CAMERAS = ("observation.images.top", "observation.images.wrist")


def write_lerobot(
  root: Path,
  version: str,
  lengths: Sequence[int] = (7, 5, 6),
  codec: str = "libx264",
  start: float = 0.0,
) -> Path:
  """Writes a LeRobot folder of two arms with two cameras.

  Args:
    root: gets it.
    version: v2.0, v2.1 or v3.0; v3.0 puts all episodes into one file.
    lengths: steps of each episode.
    codec: of the videos.
    start: time stamp of each first step.
  """
  tables, frames = [], {camera: [] for camera in CAMERAS}
  first = 0
  for e, length in enumerate(lengths):
    tables.append(_table(e, length, first, start))
    for c, camera in enumerate(CAMERAS):
      frames[camera].append(pictures(100 * e + c, length))
    first += length
  new = version.startswith("v3")
  (root / "meta").mkdir(parents=True)
  (root / "meta/info.json").write_text(json.dumps(_info(version, lengths)))
  write = _write_v3 if new else _write_v2
  write(root, tables, frames, codec)
  return root


def _table(episode: int, length: int, first: int, start: float) -> pa.Table:
  fixed = pa.list_(pa.float32(), len(TWO_ARMS))
  # An action is where the arms should be at the next step.
  way = numbers(episode, length + 1)
  action, state = way[1:], way[:-1]
  return pa.table(
    {
      "action": pa.array(list(action), fixed),
      "observation.state": pa.array(list(state), fixed),
      "timestamp": pa.array(
        start + np.arange(length, dtype=np.float32) / RATE, pa.float32()
      ),
      "frame_index": np.arange(length),
      "episode_index": np.full(length, episode),
      "index": first + np.arange(length),
      "task_index": np.full(length, episode % 2),
    }
  )


def _info(version: str, lengths: Sequence[int]) -> Mapping:
  place = "chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}"
  data_path = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}"
  if version.startswith("v3"):
    place = "{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}"
    data_path = "data/chunk-{chunk_index:03d}/file-{file_index:03d}"
  # Versions and authors write names in different ways.
  names = {"v2.0": {"motors": TWO_ARMS}, "v2.1": [TWO_ARMS]}
  vector = {
    "dtype": "float32",
    "shape": [len(TWO_ARMS)],
    "names": names.get(version, TWO_ARMS),
  }
  video = {"dtype": "video", "shape": [48, 64, 3], "names": ["h", "w", "c"]}
  depth = video | {"info": {"video.is_depth_map": True}}
  cameras = dict.fromkeys(CAMERAS, video)
  return {
    "codebase_version": version,
    "fps": RATE,
    "chunks_size": 1000,
    "total_episodes": len(lengths),
    "data_path": f"{data_path}.parquet",
    "video_path": f"videos/{place}.mp4",
    "features": {
      "action": vector,
      "observation.state": vector,
      **cameras,
      "observation.depth": depth,
      "timestamp": {"dtype": "float32", "shape": [1], "names": None},
      "task_index": {"dtype": "int64", "shape": [1], "names": None},
    },
  }


def _write_v2(root: Path, tables, frames, codec: str):
  (root / "data/chunk-000").mkdir(parents=True)
  episodes = []
  for e, table in enumerate(tables):
    pq.write_table(table, root / f"data/chunk-000/episode_{e:06d}.parquet")
    for camera, found in frames.items():
      path = root / f"videos/chunk-000/{camera}/episode_{e:06d}.mp4"
      write_video(path, found[e], codec)
    episodes.append({"episode_index": e, "length": table.num_rows})
  tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
  for name, rows in (("episodes", episodes), ("tasks", tasks)):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / f"meta/{name}.jsonl").write_text(lines)


def _write_v3(root: Path, tables, frames, codec: str):
  (root / "data/chunk-000").mkdir(parents=True)
  pq.write_table(
    pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet"
  )
  for camera, found in frames.items():
    path = root / f"videos/{camera}/chunk-000/file-000.mp4"
    write_video(path, np.concatenate(found), codec)
  rows, first = [], 0
  for e, table in enumerate(tables):
    row = {"episode_index": e, "length": table.num_rows}
    row |= {"data/chunk_index": 0, "data/file_index": 0, "stats/x/min": [0.0]}
    for camera in CAMERAS:
      row |= {
        f"videos/{camera}/chunk_index": 0,
        f"videos/{camera}/file_index": 0,
        f"videos/{camera}/from_timestamp": first / RATE,
      }
    rows.append(row)
    first += table.num_rows
  (root / "meta/episodes/chunk-000").mkdir(parents=True)
  path = root / "meta/episodes/chunk-000/file-000.parquet"
  pq.write_table(pa.Table.from_pylist(rows), path)
  tasks = {"task_index": [0, 1], "__index_level_0__": TASKS}
  pq.write_table(pa.table(tasks), root / "meta/tasks.parquet")


def write_robomimic(path: Path, names: Mapping[str, str], **attributes) -> Path:
  """Twelve demonstrations of 3 steps; LIBERO's and robomimic's layout.

  Args:
    path: of the file.
    names: data sets below `obs/` by what they hold: pose, turn, fingers, and
      the two cameras front and wrist.
    **attributes: of the group `data`.
  """
  with h5py.File(path, "w") as file:
    data = file.create_group("data")
    data.attrs.update(attributes)
    for d in range(12):
      demo = data.create_group(f"demo_{d}")
      rng = np.random.default_rng(d)
      demo["actions"] = rng.uniform(-1, 1, (3, 7))
      for key, width in (("pose", 3), ("turn", 4), ("fingers", 2)):
        if key in names:
          width = 3 if names[key] == "ee_ori" else width
          values = rng.normal(size=(3, width))
          if width == 4:
            values /= np.linalg.norm(values, axis=-1, keepdims=True)
          demo[f"obs/{names[key]}"] = values
      demo[f"obs/{names['front']}"] = pictures(d, 3)
      demo[f"obs/{names['wrist']}"] = pictures(20 + d, 3, (32, 32))
  return path
