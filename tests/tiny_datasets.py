"""Writes small RLDS datasets as TFDS lays them out on disk."""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from rt2_jax.input_pipeline.examples import Rows
from rt2_jax.input_pipeline.sources import SourceConfig

Features = Mapping[str, Sequence]


def jpeg(seed: int, height: int = 64, width: int = 64) -> bytes:
  """A smooth random picture."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
  file = io.BytesIO()
  coarse.resize((width, height), Image.BILINEAR).save(file, "jpeg", quality=95)
  return file.getvalue()


def row(examples, i: int, epoch: int, data: Sequence[bytes]) -> Rows:
  """Makes one example; its fields without the first axis."""
  rows = examples.rows(np.array([i]), np.array([epoch]), [data])
  return Rows(*(each[0] for each in rows))


def bridge_episode(
  seed: int, length: int = 5, instruction: str = "put carrot on plate"
) -> dict[str, list]:
  """The features of `bridge_dataset` that count, with small random motions."""
  rng = np.random.default_rng(seed)
  action = rng.uniform(-0.02, 0.02, (length, 7)).astype(np.float32)
  action[:, 6] = rng.integers(0, 2, length)
  return {
    "steps/is_first": [int(t == 0) for t in range(length)],
    "steps/is_last": [int(t == length - 1) for t in range(length)],
    "steps/action": action.ravel().tolist(),
    "steps/language_instruction": [instruction.encode()] * length,
    "steps/observation/image_0": [jpeg(seed * 1000 + t) for t in range(length)],
  }


def libero_episode(seed: int, length: int = 5) -> dict[str, list]:
  """Two cameras of different sizes and a state, as LIBERO has them."""
  rng = np.random.default_rng(seed)
  action = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
  state = rng.uniform(-1, 1, (length, 8)).astype(np.float32)
  wrist = [jpeg(seed * 1000 + 500 + t, 40, 48) for t in range(length)]
  return {
    "steps/is_first": [int(t == 0) for t in range(length)],
    "steps/is_last": [int(t == length - 1) for t in range(length)],
    "steps/action": action.ravel().tolist(),
    "steps/language_instruction": [b"open the drawer"] * length,
    "steps/observation/image": [jpeg(seed * 1000 + t) for t in range(length)],
    "steps/observation/wrist_image": wrist,
    "steps/observation/state": state.ravel().tolist(),
  }


def tabletop_episode(
  target: str,
  target_boxes: Sequence[tuple[float, float, float, float]],
  reference: str = "",
  reference_boxes: Sequence[tuple[float, float, float, float]] = (),
) -> dict[str, list]:
  """What data/make_tabletop.py writes and `datasets.py` reads, at rest."""
  length = len(target_boxes)
  reference_boxes = reference_boxes or [(0.0,) * 4] * length
  instruction = f"pick up the {target}".encode()
  return {
    "steps/is_first": [int(t == 0) for t in range(length)],
    "steps/action": [0.0] * 8 * length,
    "steps/language_instruction": [instruction] * length,
    "steps/observation/image": [jpeg(t) for t in range(length)],
    "steps/target_box": np.ravel(target_boxes).tolist(),
    "steps/reference_box": np.ravel(reference_boxes).tolist(),
    "episode_metadata/target": [target.encode()],
    "episode_metadata/reference": [reference.encode()],
  }


def web_example(
  seed: int,
  question: str = "Answer in en: what colour is the cup?",
  answers: Sequence[str] = ("red",),
) -> dict[str, list]:
  """A record of `input_pipeline/web.py`."""
  return {
    "image": [jpeg(seed, 40 + seed, 90)],
    "question": [question.encode()],
    "answers": [answer.encode() for answer in answers],
    "task": [b"vqa"],
    "language": [b"en"],
  }


def write(
  folder: pathlib.Path,
  episodes: Sequence[Features],
  name: str = "bridge_dataset",
  split: str = "train",
  num_shards: int = 1,
) -> pathlib.Path:
  """Writes episodes to shards and dataset_info.json; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  shards = np.array_split(np.arange(len(episodes)), num_shards)
  for i, numbers in enumerate(shards):
    number = f"{i:05d}-of-{num_shards:05d}"
    path = folder / f"{name}-{split}.tfrecord-{number}"
    with tf.io.TFRecordWriter(str(path)) as writer:
      for n in numbers:
        # In one order, so that a flipped byte is always in the same feature.
        writer.write(
          _example(episodes[n]).SerializeToString(deterministic=True)
        )
  lengths = [str(len(numbers)) for numbers in shards]
  info = {"name": name, "splits": [{"name": split, "shardLengths": lengths}]}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  return folder


def bridge_source(
  folder: pathlib.Path, num_episodes: int = 4, num_shards: int = 1
) -> SourceConfig:
  """A small dataset in the format of `bridge_dataset`, as a source."""
  episodes = [bridge_episode(seed) for seed in range(num_episodes)]
  write(folder, episodes, num_shards=num_shards)
  return SourceConfig("bridge_dataset", str(folder))


def _example(features: Features) -> tf.train.Example:
  return tf.train.Example(
    features=tf.train.Features(
      feature={name: _feature(values) for name, values in features.items()}
    )
  )


def _feature(values: Sequence) -> tf.train.Feature:
  if not values:
    return tf.train.Feature()
  if isinstance(values[0], bytes):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
  if isinstance(values[0], float):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
  return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
