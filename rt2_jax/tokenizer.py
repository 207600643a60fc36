"""Text <-> ids: a SentencePiece model with `<loc>` and `<seg>` appended.

With Gemma's model file (256,000 pieces) this is PaliGemma's vocabulary of
257,152 ids: the file's pieces, then 1024 `<loc>`, then 128 `<seg>` tokens.
PaliGemma's own file holds these already, as its last pieces.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto as Proto
from sentencepiece.sentencepiece_model_pb2 import TrainerSpec

from rt2_jax import shipped, storage
from rt2_jax.action_tokens import IntegerTokens, RareTokens
from rt2_jax.actions import NUM_BINS
from rt2_jax.errors import UserError, unknown_name

PAD, EOS, BOS = 0, 1, 2
NUM_LOC, NUM_SEG = 1024, 128
IMAGE_WORD = "<image>"  # where transformers puts an image's tokens
# Exactly the tokens that exist: in another number's digits, or beyond the last
# one, it is text like any other.
_EXTRA = re.compile(
  "(<loc(?:0[0-9]{3}|10[01][0-9]|102[0-3])>"
  "|<seg(?:0[0-9]{2}|1[01][0-9]|12[0-7])>)"
)
_HALF_PAIR = re.compile("[\ud800-\udfff]")
# Scores are rounded to multiples of this: sums down to -65,536, of 2,600
# characters that no piece has, are exact in float32 and in float64.
SCORE_UNIT = 2.0**-8
# What SentencePiece 0.2.3 adds for each byte of a user-defined piece but the
# first, whatever the file says. Earlier versions did otherwise.
_USER_DEFINED_SCORE = 0.1
Piece = Proto.SentencePiece


def loc_word(part: float) -> str:
  """Writes a coordinate, 0..1, in PaliGemma's words, such as `<loc0416>`."""
  return f"<loc{min(int(part * NUM_LOC), NUM_LOC - 1):04d}>"


def place_words(box: Sequence[float], bins: int) -> str:
  """Writes the middle of a box as two words, `<loc0416><loc0608>`: y, x.

  Args:
    box: y_min, x_min, y_max, x_max, 0..1.
    bins: of a coordinate; a word stands for the middle of its bin.
  """
  y_min, x_min, y_max, x_max = box
  middles = (y_min + y_max) / 2, (x_min + x_max) / 2
  cells = (min(int(v * bins), bins - 1) for v in middles)
  return "".join(loc_word((cell + 0.5) / bins) for cell in cells)


def is_bpe(proto: Proto) -> bool:
  """Tells a byte-pair encoding, such as Gemma's, from a unigram model."""
  return proto.trainer_spec.model_type == TrainerSpec.BPE


def with_exact_scores(proto: Proto) -> Proto:
  """Rounds a unigram model's scores, so that every program adds them alike.

  The pieces of a text are those with the largest sum of scores. Rounded sums
  differ between float32 and float64 where two ways of cutting a text are
  equally good, and two programs would cut it differently. Sums of multiples
  of `SCORE_UNIT` are exact in both. Pieces that a user defined get the score
  that SentencePiece gives them, rounded likewise.
  """
  exact = Proto()
  exact.CopyFrom(proto)
  for piece in exact.pieces:
    if piece.type == Piece.USER_DEFINED:
      length = len(piece.piece.encode())
      piece.type, piece.score = Piece.NORMAL, _USER_DEFINED_SCORE * (length - 1)
    if piece.type == Piece.NORMAL:
      piece.score = round(piece.score / SCORE_UNIT) * SCORE_UNIT
  return exact


class Tokenizer:
  """A SentencePiece model by its file's bytes, which checkpoints carry."""

  def __init__(self, model: bytes, origin: str = "tokenizer"):
    """Loads a model.

    Args:
      model: the bytes of a SentencePiece model file.
      origin: where they came from, for error messages.

    Raises:
      UserError: not a SentencePiece model, or other special ids than Gemma's.
    """
    self.model = model
    try:
      self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
      num_pieces = self._pieces.vocab_size()
    except RuntimeError as error:
      raise UserError(
        f"{origin}: got {len(model)} bytes that are not a SentencePiece "
        "model; pass Gemma's tokenizer.model or data/small_tokenizer.model"
      ) from error
    special = tuple(
      getattr(self._pieces, name)() for name in ("pad_id", "eos_id", "bos_id")
    )
    if special != (PAD, EOS, BOS):
      raise UserError(
        f"{origin}: got pad, eos, bos = {special}, expected {(PAD, EOS, BOS)} "
        "as in Gemma's vocabulary; train the model with these ids"
      )
    first_loc = self._pieces.piece_to_id("<loc0000>")
    holds_extra = first_loc == num_pieces - NUM_LOC - NUM_SEG
    self._num_pieces = first_loc if holds_extra else num_pieces
    proto = Proto.FromString(model)
    self._encoder = self._pieces
    if not is_bpe(proto):
      self._encoder = sentencepiece.SentencePieceProcessor(
        model_proto=with_exact_scores(proto).SerializeToString()
      )
    kinds = (Piece.CONTROL, Piece.UNKNOWN)
    control = [p.piece for p in proto.pieces if p.type in kinds]
    self._control = re.compile("|".join(map(re.escape, [*control, IMAGE_WORD])))

  @classmethod
  def from_file(cls, path: str | os.PathLike) -> Tokenizer:
    """Reads a model file, local or e.g. `gs://…`.

    Raises:
      UserError: no such file; or see `__init__`.
    """
    path = storage.locate(shipped.find(path), "the tokenizer file")
    if not path.is_file():
      raise UserError(
        f"got tokenizer file {str(path)!r}, which does not exist; pass Gemma's "
        "tokenizer.model or data/small_tokenizer.model"
      )
    return cls(path.read_bytes(), origin=str(path))

  def __reduce__(self):
    # What SentencePiece pickles of itself is many times the model's size.
    return Tokenizer, (self.model,)

  @property
  def vocab_size(self) -> int:
    return self._num_pieces + NUM_LOC + NUM_SEG

  @functools.cached_property
  def sha256(self) -> str:
    return hashlib.sha256(self.model).hexdigest()

  def loc(self, i: int) -> int:
    """Finds the id of `<loc…>`, i in 0..1023, 1024ths of the image."""
    assert 0 <= i < NUM_LOC, i
    return self._num_pieces + i

  def seg(self, i: int) -> int:
    """Finds the id of `<seg…>`, i in 0..127."""
    assert 0 <= i < NUM_SEG, i
    return self._num_pieces + NUM_LOC + i

  def encode(self, text: str) -> list[int]:
    """Tokenizes text, which may hold `<loc0123>` and `<seg012>`.

    Raises:
      UserError: text that holds a control word, such as `<eos>` or `<image>`,
        or that is not Unicode.
    """
    self._check(text)
    ids = []
    for i, part in enumerate(_EXTRA.split(text)):
      if i % 2 == 0:
        ids += self._encoder.encode(part)
      elif part.startswith("<loc"):
        ids.append(self.loc(int(part[4:-1])))
      else:
        ids.append(self.seg(int(part[4:-1])))
    return ids

  def _check(self, text: str):
    # SentencePiece would spell `<eos>`; transformers would end the text there.
    word = self._control.search(text)
    if word:
      raise UserError(
        f"got text that holds the control word {word[0]!r}: {text!r}, expected "
        "words; transformers reads it as a token of its own, so take it out"
      )
    if _HALF_PAIR.search(text):
      raise UserError(
        f"got text with half of a character pair: {text!a}, expected Unicode; "
        "decode it again from its bytes"
      )

  def decode(self, ids) -> str:
    """Ids to text; pad, bos and eos disappear."""
    text, run = "", []
    for i in map(int, ids):
      if i < self._num_pieces:
        run.append(i)
        continue
      text += self._pieces.decode(run)
      run = []
      i -= self._num_pieces
      text += f"<loc{i:04d}>" if i < NUM_LOC else f"<seg{i - NUM_LOC:03d}>"
    return text + self._pieces.decode(run)

  def action_route(self, name: str) -> RareTokens | IntegerTokens:
    """Makes an action encoding by its name, "rare" or "integers"."""
    if name == "rare":
      return RareTokens(tuple(self.rare_ids(NUM_BINS)))
    if name == "integers":
      return IntegerTokens(self._integer_characters(), EOS)
    raise unknown_name("action token route", name, ("rare", "integers"))

  def rare_ids(self, count: int) -> list[int]:
    """Finds the `count` least used ordinary ids, in increasing order.

    Ordinary: no control, byte, user-defined, unused, `<loc>` or `<seg>` token,
    printable (an invisible piece such as U+202D does not survive text), and
    one to one with its piece. Least used: lowest SentencePiece score, which
    orders the pieces by frequency.
    """
    pieces = self._pieces
    ordinary = [
      i
      for i in range(self._num_pieces)
      if not (pieces.is_control(i) or pieces.is_byte(i))
      and not (pieces.is_unknown(i) or pieces.is_unused(i))
      and self._is_plain(pieces.id_to_piece(i))
      and pieces.piece_to_id(pieces.id_to_piece(i)) == i
    ]
    if len(ordinary) < count:
      raise UserError(
        f"got a vocabulary with {len(ordinary)} ordinary pieces, expected at "
        f"least {count} for the action tokens; use a larger SentencePiece model"
      )
    ordinary.sort(key=lambda i: (pieces.get_score(i), -i))
    return sorted(ordinary[:count])

  def _is_plain(self, piece: str) -> bool:
    """Tells whether a piece is printable, no digit and no marker."""
    word = piece.replace("▁", "")
    is_marker = word.startswith("<") and word.endswith(">") and len(word) > 2
    return (
      bool(word) and word.isprintable() and not (word.isdecimal() or is_marker)
    )

  def _integer_characters(self) -> tuple[tuple[str, int], ...]:
    characters = []
    for c in "0123456789- ":
      piece = "▁" if c == " " else c
      i = self._pieces.piece_to_id(piece)
      if self._pieces.id_to_piece(i) != piece:
        raise UserError(
          f"got a vocabulary without a piece for {c!r}, which the action route "
          "'integers' needs; use the route 'rare'"
        )
      characters.append((c, i))
    return tuple(characters)
