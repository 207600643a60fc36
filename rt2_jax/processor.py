"""Text and images as Hugging Face's AutoProcessor reads them.

A SentencePiece model is rewritten for the `tokenizers` library: the same pieces
with the same ids, then `<loc>`, `<seg>` and, as the first id behind our
vocabulary, `<image>`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as sentencepiece
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from rt2_jax.errors import UserError
from rt2_jax.models.variants import SiglipConfig
from rt2_jax.tokenizer import NUM_LOC, NUM_SEG

_BILINEAR = 2  # PIL's number
_SPECIAL = {
  f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")
}
_Piece = sentencepiece.ModelProto.SentencePiece


def write(tokenizer: bytes, config: SiglipConfig, folder: pathlib.Path):
  """Writes the tokenizer's and the image processor's files.

  Args:
    tokenizer: the SentencePiece model.
    config: of the encoder that reads the images.
    folder: must exist.

  Raises:
    UserError: a SentencePiece model that `tokenizers` cannot express.
  """
  proto = sentencepiece.ModelProto.FromString(tokenizer)
  backend = make_tokenizer(proto)
  backend.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer.model").write_bytes(tokenizer)
  for name, fields in (
    ("tokenizer_config", _tokenizer_fields(proto, backend)),
    ("preprocessor_config", _image_fields(config)),
  ):
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n")


def make_tokenizer(proto: sentencepiece.ModelProto) -> tokenizers.Tokenizer:
  """The same text to the same ids, by the `tokenizers` library.

  Raises:
    UserError: a model that changes spaces or characters before it cuts text,
      as Gemma's does not.
  """
  rules = proto.normalizer_spec
  if (
    rules.add_dummy_prefix
    or rules.remove_extra_whitespaces
    or rules.precompiled_charsmap
  ):
    raise UserError(
      "got a SentencePiece model that changes text before it cuts it, expected "
      "one like Gemma's: identity normalization, no dummy prefix, all spaces "
      "kept"
    )
  if _is_bpe(proto):
    backend = tokenizers.Tokenizer(_bpe(proto))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  else:
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    unk = proto.trainer_spec.unk_id
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk, True))
  backend.normalizer = normalizers.Replace(" ", "▁")
  backend.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  backend.add_tokens(list(_added_tokens(proto)))
  return backend


def _is_bpe(proto: sentencepiece.ModelProto) -> bool:
  return proto.trainer_spec.model_type == sentencepiece.TrainerSpec.BPE


def _bpe(proto: sentencepiece.ModelProto) -> models.BPE:
  # Slow to import, and needed for Gemma's own vocabulary only.
  from transformers.convert_slow_tokenizer import generate_merges

  ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
  return models.BPE(
    vocab=ids,
    merges=generate_merges(ids, None),
    unk_token=proto.trainer_spec.unk_piece,
    fuse_unk=True,
    byte_fallback=True,
  )


def _added_tokens(proto: sentencepiece.ModelProto) -> Iterator[AddedToken]:
  """Tokens that are cut out of the text first, by increasing id."""
  for piece in proto.pieces:
    if piece.type in (_Piece.CONTROL, _Piece.USER_DEFINED):
      special = piece.type == _Piece.CONTROL
      yield AddedToken(piece.piece, special=special, normalized=False)
  for i in range(NUM_LOC):
    yield AddedToken(f"<loc{i:04d}>", special=False, normalized=False)
  for i in range(NUM_SEG):
    yield AddedToken(f"<seg{i:03d}>", special=False, normalized=False)
  yield AddedToken("<image>", special=True, normalized=False)


def _tokenizer_fields(
  proto: sentencepiece.ModelProto, backend: tokenizers.Tokenizer
) -> dict[str, Any]:
  """tokenizer_config.json."""
  added = {
    str(i): {
      "content": token.content,
      "lstrip": False,
      "normalized": False,
      "rstrip": False,
      "single_word": False,
      "special": token.special,
    }
    for i, token in sorted(backend.get_added_tokens_decoder().items())
  }
  # A class that rebuilds Gemma's BPE has no place for a unigram model.
  kind = "GemmaTokenizer" if _is_bpe(proto) else "PreTrainedTokenizerFast"
  return {
    "tokenizer_class": kind,
    "processor_class": "PaliGemmaProcessor",
    **_SPECIAL,
    "additional_special_tokens": ["<image>"],
    "padding_side": "left",
    "add_bos_token": False,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "added_tokens_decoder": added,
  }


def _image_fields(config: SiglipConfig) -> dict[str, Any]:
  """preprocessor_config.json: our image path as PIL has it, in whole levels."""
  return {
    "image_processor_type": "SiglipImageProcessor",
    "processor_class": "PaliGemmaProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": config.image_size, "width": config.image_size},
    "resample": _BILINEAR,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_seq_length": config.num_tokens,
  }
