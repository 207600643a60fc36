"""Writes the files of Hugging Face's AutoProcessor for text and images.

A SentencePiece model is rewritten for the `tokenizers` library: the same pieces
with the same ids, then `<loc>`, `<seg>` and, as the first id behind our
vocabulary, `<image>`. Every text that `Tokenizer` takes gets the same ids
there, or the model is refused.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
)

from rt2_jax.errors import UserError
from rt2_jax.models.variants import SiglipConfig
from rt2_jax.tokenizer import (
  IMAGE_WORD,
  NUM_LOC,
  NUM_SEG,
  Piece,
  Proto,
  is_bpe,
  with_exact_scores,
)

_BILINEAR = 2  # PIL's number
_SPECIAL = {
  f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")
}


def write(tokenizer: bytes, config: SiglipConfig, folder: pathlib.Path):
  """Writes the tokenizer's and the image processor's files.

  Args:
    tokenizer: the SentencePiece model.
    config: of the encoder that reads the images.
    folder: must exist.

  Raises:
    UserError: a SentencePiece model that `tokenizers` cannot express.
  """
  proto = Proto.FromString(tokenizer)
  backend = make_tokenizer(proto)
  backend.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer.model").write_bytes(tokenizer)
  for name, fields in (
    ("tokenizer_config", _tokenizer_fields(backend)),
    ("preprocessor_config", _image_fields(config)),
  ):
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    file = folder / f"{name}.json"
    file.write_text(text + "\n", encoding="utf-8")


def make_tokenizer(proto: Proto) -> tokenizers.Tokenizer:
  """Makes a tokenizer of the `tokenizers` library that gives the same ids.

  Raises:
    UserError: a model that changes spaces or characters before it cuts text,
      as Gemma's does not, or that the library would read differently.
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
  _check_unused(proto)
  backend = _byte_pairs(proto) if is_bpe(proto) else _unigram(proto)
  backend.normalizer = normalizers.Replace(" ", "▁")
  backend.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  backend.add_tokens(list(_added_tokens(proto)))
  return backend


def _check_unused(proto: Proto):
  """Raises a UserError for pieces that only SentencePiece leaves alone."""
  unused = [p.piece for p in proto.pieces if p.type == Piece.UNUSED]
  if unused:
    raise UserError(
      f"got a SentencePiece model with {len(unused)} unused pieces, such as "
      f"{unused[0]!r}, expected none: `tokenizers` would use them"
    )


def _byte_pairs(proto: Proto) -> tokenizers.Tokenizer:
  """Makes a BPE model of ordinary pieces; added tokens are cut out before.

  Raises:
    UserError: pieces that are not in the order of their scores, which is the
      order in which `tokenizers` merges them.
  """
  # Slow to import, and needed for Gemma's own vocabulary only.
  from transformers.convert_slow_tokenizer import generate_merges

  ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
  normal = [p for p in proto.pieces if p.type == Piece.NORMAL]
  merged = [p for p in normal if len(p.piece) > 1]
  for one, two in itertools.pairwise(merged):
    if one.score <= two.score:
      raise UserError(
        f"got a SentencePiece model whose piece {two.piece!r} has a score of "
        f"{two.score}, expected less than {one.score}, that of {one.piece!r} "
        "before it; train it with model_type='bpe'"
      )
  merges = generate_merges({p.piece: ids[p.piece] for p in normal}, None)
  return tokenizers.Tokenizer(
    models.BPE(
      vocab=ids,
      merges=merges,
      unk_token=proto.trainer_spec.unk_piece,
      fuse_unk=True,
      byte_fallback=proto.trainer_spec.byte_fallback,
    )
  )


def _unigram(proto: Proto) -> tokenizers.Tokenizer:
  """Makes a unigram model, with the scores that `Tokenizer` adds.

  Raises:
    UserError: a piece across the place where `<0x41>`, which stands for a
      byte, is cut in two.
  """
  crossing = [
    p.piece
    for p in proto.pieces
    if p.type in (Piece.NORMAL, Piece.USER_DEFINED) and "0x" in p.piece
  ]
  if crossing:
    raise UserError(
      f"got a SentencePiece model with the piece {crossing[0]!r}, expected "
      "none that holds '0x': `tokenizers` would take the words <0x00>..<0xFF> "
      "for bytes; train it with split_digits=True"
    )
  exact = with_exact_scores(proto)
  # SentencePiece scores what it does not know by the lowest of these.
  lowest = min(p.score for p in exact.pieces if p.type == Piece.NORMAL)
  pieces = [
    (p.piece, p.score if p.type == Piece.NORMAL else lowest)
    for p in exact.pieces
  ]
  backend = tokenizers.Tokenizer(
    models.Unigram(
      pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback
    )
  )
  # The words <0x00>..<0xFF> in a text are no bytes.
  backend.pre_tokenizer = pre_tokenizers.Split(
    Regex("<0(?=x[0-9A-F]{2}>)"), "merged_with_previous"
  )
  return backend


def _added_tokens(proto: Proto) -> Iterator[AddedToken]:
  """Yields the tokens that are cut out of the text first, by id.

  SentencePiece cuts a user's own pieces out of byte pairs, once spaces are
  written as "▁"; in a unigram model they have scores like all others.
  """
  for piece in proto.pieces:
    if piece.type == Piece.CONTROL:
      yield AddedToken(piece.piece, special=True, normalized=False)
    elif piece.type == Piece.USER_DEFINED and is_bpe(proto):
      yield AddedToken(piece.piece, special=False, normalized=True)
  for i in range(NUM_LOC):
    yield AddedToken(f"<loc{i:04d}>", special=False, normalized=False)
  for i in range(NUM_SEG):
    yield AddedToken(f"<seg{i:03d}>", special=False, normalized=False)
  yield AddedToken(IMAGE_WORD, special=True, normalized=False)


def _tokenizer_fields(backend: tokenizers.Tokenizer) -> dict[str, Any]:
  """Makes the fields of tokenizer_config.json."""
  added = {
    str(i): {
      "content": token.content,
      "lstrip": False,
      "normalized": token.normalized,
      "rstrip": False,
      "single_word": False,
      "special": token.special,
    }
    for i, token in sorted(backend.get_added_tokens_decoder().items())
  }
  return {
    # As tokenizer.json has it. GemmaTokenizer would add a `<mask>`.
    "tokenizer_class": "PreTrainedTokenizerFast",
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
  """Makes preprocessor_config.json: our image path, rounded by PIL."""
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
