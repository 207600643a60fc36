"""Writes TFDS folders, quietly and never over other data."""

import abc
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from rt2_jax.byte_ranges import open_storage
from rt2_jax.differences import differing, to_json
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import dataset_info, splits

SPLITS = ("train", "val")
METADATA = "metadata.json"  # where TFDS keeps a dataset's metadata


class EpisodesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Builds a dataset of episodes with a split for each number of settings.

  TFDS names the folder after the class, so that a dataset is a subclass. It is
  not registered: a real dataset of that name is still found.
  """

  # Beside the code TFDS would look for checksums of downloads. There are none,
  # and in a folder without __init__.py the search itself fails.
  code_path = None
  description: str
  license: str

  def __init__(self, settings: Mapping[str, Any], data_dir: Path):
    """Keeps `settings` in the folder, see `check_settings`."""
    self.settings = settings
    super().__init__(data_dir=data_dir)

  @abc.abstractmethod
  def features(self) -> tfds.features.FeaturesDict:
    """Describes an episode."""

  @abc.abstractmethod
  def episodes(self, split: str) -> Iterator[dict[str, Any]]:
    """Makes the episodes of a split."""

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.description,
      features=self.features(),
      metadata=tfds.core.MetadataDict(self.settings),
      license=self.license,
    )

  def _split_generators(self, _) -> dict[str, Any]:
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(self.episodes(split))


def write_quietly(builder: tfds.core.DatasetBuilder) -> None:
  """Runs the builder without TFDS's messages about downloads and progress."""
  tfds.disable_progress_bar()
  with (
    tempfile.TemporaryDirectory() as nothing_to_download,
    contextlib.redirect_stdout(io.StringIO()),
  ):
    builder.download_and_prepare(download_dir=nothing_to_download)


def describe_folder(
  folder: Path,
  name: str,
  features: tfds.features.FeaturesDict,
  lengths: Mapping[str, Sequence[int]],
  num_bytes: Mapping[str, int],
  settings: Mapping[str, Any],
) -> None:
  """Writes the files that describe shards which are there already.

  Args:
    folder: holds `{name}-{split}.tfrecord-00000-of-000NN`.
    name: of the data set.
    features: of an example.
    lengths: examples of each shard, by split.
    num_bytes: of all examples of a split.
    settings: are kept in the folder, see `check_settings`.
  """
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name=name, filetype_suffix="tfrecord"
  )
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=list(lengths[split]),
      num_bytes=num_bytes[split],
      filename_template=template.replace(split=split),
    )
    for split in lengths
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=splits,
    version="1.0.0",
    filename_template=template,
    check_data=False,
    metadata=tfds.core.MetadataDict(settings),
  )


def check_settings(
  folder: Path, settings: Mapping[str, Any], beside: str = ""
) -> None:
  """Compares the settings with those that a folder was written with.

  Args:
    folder: that is there already.
    settings: of this call.
    beside: file that belongs to the folder besides TFDS's own.

  Raises:
    UserError: they differ, or the folder lacks some of its files.
  """
  path = folder / METADATA
  found = json.loads(path.read_text()) if path.exists() else None
  wanted = to_json(settings)
  if found != wanted:
    told = "data of another program"
    if found:
      changes = list(differing(found, wanted, "settings"))
      told = f"data made otherwise: {'; '.join(changes[:3])}"
    raise UserError(
      f"{folder}: got {told}; pass another --output_dir, or remove the folder"
    )
  _check_whole(folder, beside)


def _check_whole(folder: Path, beside: str):
  """Raises UserError where a stopped upload left out files of a folder."""
  storage = open_storage(str(folder))
  info = dataset_info.read(storage, str(folder))
  try:
    for split in info.lengths if info else SPLITS:
      splits.find_split(storage, str(folder), split)
    if beside and not (folder / beside).exists():
      raise UserError(f"got no {beside}")
  except UserError as problem:
    raise UserError(
      f"{folder}: got a part of these data, as an upload that was stopped "
      f"leaves it ({problem}); remove the folder, or go on where it was made"
    ) from problem
