"""Opens, damages and compares indexes of small datasets."""

import dataclasses
import pathlib

import numpy as np

from rt2_jax.input_pipeline import datasets
from rt2_jax.input_pipeline.sources import (
  open_source,
)


def open_index(config, folder, max_skipped=0):
  return open_source(
    config,
    "train",
    index_folder=folder and str(folder),
    max_skipped=max_skipped,
  ).index


def damage(config, shard: int, byte: int) -> str:
  """Changes one byte of a shard; returns its path."""
  (path,) = pathlib.Path(config.path).glob(f"*-0000{shard}-of-00003")
  data = bytearray(path.read_bytes())
  data[byte] ^= 1
  path.write_bytes(data)
  return str(path)


def equal(a, b) -> bool:
  columns = ("file", "offset", "length", "checksum", "size", "frame")
  columns += ("episode", "text", "plan", "action", "state")
  return (a.texts, a.plans) == (b.texts, b.plans) and all(
    np.array_equal(getattr(a, c), getattr(b, c)) for c in columns
  )


def changed_dataset(monkeypatch, **fields):
  known = datasets.DATASETS["bridge_dataset"]
  changed = dataclasses.replace(known, **fields)
  monkeypatch.setitem(datasets.DATASETS, "bridge_dataset", changed)


def times(scale):
  """A dataset's function whose motions are scaled."""

  def standardize(episode):
    canonical = datasets.bridge_dataset(episode)
    return canonical._replace(action=canonical.action * np.float32(scale))

  return standardize


def closed(episode):
  """A dataset's function in a module that other processes import at once.

  TensorFlow, which tests of indexes load, would take each of them 6 s.
  """
  canonical = datasets.bridge_dataset(episode)
  canonical.action[:, 7] = 0
  return canonical
