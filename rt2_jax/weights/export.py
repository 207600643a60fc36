"""Exports weights: a folder for stock transformers, a file for big_vision.

The folder holds all that `PaliGemmaForConditionalGeneration` and
`AutoProcessor` load without any code of ours, and `rt2.json` with what makes
the model a robot policy: what a checkpoint says of itself, so that the folder
can become one again. The host holds one parameter and one file at a time.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from rt2_jax import storage, trees
from rt2_jax.checkpoint_meta import ROBOT_FILE, CheckpointMeta
from rt2_jax.errors import UserError
from rt2_jax.models.variants import VLMConfig
from rt2_jax.tokenizer import BOS, EOS, PAD, Tokenizer
from rt2_jax.weights import hf_config, hf_names, hf_processor
from rt2_jax.weights.checks import check_all_finite
from rt2_jax.weights.files import INDEX, ONE_FILE, read_json
from rt2_jax.weights.hf_names import EMBEDDING
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint

_ROBOT_FIELDS = (
  *("step", "image", "model", "prompt", "action_tokenizers"),
  "tokenizer_sha256",
)


def to_big_vision(params: dict, path: pathlib.Path, compressed: bool = False):
  """Writes an `.npz` as big_vision has it: layers stacked, under `params/`.

  Args:
    params: the parameter tree; bfloat16 becomes two bytes without a type.
    path: of the file.
    compressed: a smaller file, written slowly.
  """
  method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
  with zipfile.ZipFile(path, "w", method) as archive:
    for name, leaf in trees.flatten(params).items():
      array = np.asarray(leaf)
      if array.dtype == "bfloat16":
        array = array.view("V2")
      with archive.open(f"params/{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def stored_to_huggingface(checkpoint: StoredCheckpoint, folder: pathlib.Path):
  """Writes a run's checkpoint as `to_huggingface` does, with its step.

  Raises:
    UserError: a parameter that is not finite.
  """
  to_huggingface(
    checkpoint.read_params(),
    checkpoint.model,
    checkpoint.meta,
    checkpoint.tokenizer,
    folder,
    checkpoint.step,
  )


def to_huggingface(
  params: dict,
  config: VLMConfig,
  meta: Mapping[str, Any],
  tokenizer: bytes,
  folder: pathlib.Path,
  step: int = 0,
  shard_bytes: int = 2**31,
):
  """Writes a folder for transformers.

  Args:
    params: the parameter tree, all of one type.
    config: its model.
    meta: of the checkpoint.
    tokenizer: the SentencePiece model.
    folder: is created, or must be empty.
    step: of the checkpoint.
    shard_bytes: most bytes of tensors in one file.

  Raises:
    UserError: a decoder or a tokenizer that transformers does not have, a
      parameter that is not finite, or a folder with files in it.
  """
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"got output {folder}, which is not empty; choose another")
  flat = trees.flatten(params)
  check_all_finite(folder, flat)
  dtype = str(flat[EMBEDDING].dtype)
  fields = hf_config.to_config(config, dtype)
  folder.mkdir(parents=True, exist_ok=True)
  hf_processor.write(tokenizer, config.img, folder)
  _write_json(folder / "config.json", fields)
  _write_json(folder / "generation_config.json", _generation_fields(config))
  _write_json(folder / ROBOT_FILE, robot_fields(config, meta, step))
  _write_tensors(flat, config, folder, shard_bytes)


def robot_fields(
  config: VLMConfig, meta: Mapping[str, Any], step: int
) -> dict[str, Any]:
  """Makes the fields of `ROBOT_FILE`: all that a policy needs but weights."""
  size = config.img.image_size
  return {
    **meta,
    "step": step,
    "image": {
      "count": config.num_images,
      "size": [size, size],
      "resize": "bilinear with antialias, aspect ratio not kept",
      "range": [-1.0, 1.0],
    },
  }


def read_meta(folder: storage.Path) -> tuple[dict[str, Any], bytes, int]:
  """Reads meta, tokenizer and step, as `to_huggingface` was given them.

  Raises:
    UserError: a folder of another origin, or with another tokenizer.
  """
  file = folder / ROBOT_FILE
  if not file.is_file():
    raise UserError(
      f"got {folder} without {ROBOT_FILE}, expected a folder that "
      "`launch/convert.py to_hf` wrote; to train a robot from these weights, "
      f"pass --config.pretrained={folder} to launch/train.py"
    )
  meta = read_json(file)
  lost = [name for name in _ROBOT_FIELDS if name not in meta]
  if lost:
    raise UserError(
      f"{file}: got no {', '.join(lost)}, expected all that `launch/convert.py "
      "to_hf` wrote; convert it again"
    )
  step, _ = meta.pop("step"), meta.pop("image")
  tokenizer = Tokenizer.from_file(folder / "tokenizer.model")
  if tokenizer.sha256 != meta["tokenizer_sha256"]:
    raise UserError(
      f"got {folder}/tokenizer.model with sha256 {tokenizer.sha256}, expected "
      f"{meta['tokenizer_sha256']} as {ROBOT_FILE} says; convert it again"
    )
  return CheckpointMeta.from_dict(meta).to_dict(), tokenizer.model, step


def _generation_fields(config: VLMConfig) -> dict[str, Any]:
  """Makes generation_config.json, which suppresses the padding's rows."""
  vocab_size = config.llm.vocab_size
  padding = range(vocab_size, hf_names.padded_rows(vocab_size))
  return {
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
    "suppress_tokens": list(padding),
  }


def _write_json(path: pathlib.Path, content: Any):
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tensors(
  flat: Mapping[str, Any],
  config: VLMConfig,
  folder: pathlib.Path,
  shard_bytes: int,
):
  """Writes model.safetensors, or shards and an index where it is too large."""
  shards: list[list[str]] = []
  total = 0
  for tensors in _shards(flat, config, shard_bytes):
    file = folder / f"{len(shards)}.safetensors"
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    # The library keeps them from all other users, who may read the rest.
    shutil.copymode(folder / "config.json", file)
    shards.append(list(tensors))
    total += sum(tensor.nbytes for tensor in tensors.values())
  if len(shards) == 1:
    (folder / "0.safetensors").rename(folder / ONE_FILE)
    return
  weight_map = {}
  for i, names in enumerate(shards):
    name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    (folder / f"{i}.safetensors").rename(folder / name)
    weight_map |= dict.fromkeys(names, name)
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  _write_json(folder / INDEX, index)


def _shards(
  flat: Mapping[str, Any], config: VLMConfig, shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the tensors of one file after another, by their names in it."""
  shard: dict[str, np.ndarray] = {}
  size = 0
  for rule in hf_names.rules(config):
    for name, tensor in rule.split(np.asarray(flat[rule.ours])):
      if rule.ours == EMBEDDING:
        padding = hf_names.padded_rows(len(tensor)) - len(tensor)
        tensor = np.pad(tensor, ((0, padding), (0, 0)))
      if shard and size + tensor.nbytes > shard_bytes:
        yield shard
        shard, size = {}, 0
      shard[hf_names.stored_name(name)] = np.ascontiguousarray(tensor)
      size += tensor.nbytes
  yield shard
