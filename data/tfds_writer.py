"""Writing a TFDS folder: quietly, and never over other data."""

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds


def write_quietly(builder: tfds.core.DatasetBuilder) -> None:
  """Runs the builder without TFDS's messages about downloads and progress."""
  tfds.disable_progress_bar()
  with (
    tempfile.TemporaryDirectory() as nothing_to_download,
    contextlib.redirect_stdout(io.StringIO()),
  ):
    builder.download_and_prepare(download_dir=nothing_to_download)


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
  """Compares the settings with those that a folder was written with.

  Raises:
    FileExistsError: they differ.
  """
  path = folder / "metadata.json"  # where TFDS keeps a dataset's metadata
  found = json.loads(path.read_text()) if path.exists() else None
  if found != settings:
    raise FileExistsError(
      f"{folder}: got data made with {found or 'another program'}, expected "
      f"{settings}; pass another --output_dir, or remove the folder"
    )
