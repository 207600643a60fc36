"""The vocabulary: appended tokens, rare ids, refusals."""

import re

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb2

from rt2_jax.actions import NUM_BINS
from rt2_jax.errors import UserError
from rt2_jax.tokenizer import (
  BOS,
  EOS,
  PAD,
  SCORE_UNIT,
  Tokenizer,
  with_exact_scores,
)
from tests.conftest import ROOT

ARABIC = "<loc\u0660\u0660\u0660\u0661>"  # digits of another script


@pytest.fixture(scope="module")
def gemma_sized(tokenizer):
  """The small model filled up with unused pieces to Gemma's 256,000."""
  proto = pb2.ModelProto.FromString(tokenizer.model)
  unused = pb2.ModelProto.SentencePiece.UNUSED
  for i in range(256_000 - len(proto.pieces)):
    proto.pieces.add(piece=f"<filler{i}>", score=-1e6, type=unused)
  return Tokenizer(proto.SerializeToString())


def test_gemmas_file_gives_paligemmas_vocabulary(gemma_sized):
  assert gemma_sized.vocab_size == 257_152
  assert gemma_sized.loc(0) == 256_000
  assert gemma_sized.seg(127) == 257_151
  assert gemma_sized.encode("<loc1023>") == [257_023]


@pytest.mark.parametrize(
  "text",
  [
    "put carrot on plate",
    "<loc0012><loc1000> the cup ; <seg007>",
    "two\nlines, 128 and 夕",
    "<loc1024> <seg128> are no tokens",
    f"{ARABIC} is no token",
    "",
  ],
)
def test_text_round_trips(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_appended_tokens_take_one_id_each(tokenizer):
  ids = tokenizer.encode("<loc0000><loc1023><seg000><seg127>")
  first = tokenizer.vocab_size - 1024 - 128
  assert ids == [first, first + 1023, first + 1024, first + 1151]


@pytest.mark.parametrize("word", ["<loc1024>", "<seg128>", ARABIC])
def test_what_is_no_token_is_cut_like_any_text(tokenizer, word):
  pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
  text = f"pick {word} now"
  assert tokenizer.encode(text) == pieces.encode(text)


@pytest.mark.parametrize(
  "text", ["<eos>", "stop<bos>", "a <pad> b", "<unk>", "see <image>"]
)
def test_control_words_are_refused(tokenizer, text):
  word = re.search("<.*>", text)[0]
  with pytest.raises(UserError, match=f"got text that holds .*{word}"):
    tokenizer.encode(text)


def test_half_a_character_is_refused(tokenizer):
  with pytest.raises(UserError, match=r"ud83d.*expected Unicode"):
    tokenizer.encode("pick \ud83d")


def test_scores_are_rounded_and_their_order_stays(tokenizer):
  """The pieces are those of the file, but for exact ties."""
  proto = pb2.ModelProto.FromString(tokenizer.model)
  exact = with_exact_scores(proto)
  for old, new in zip(proto.pieces, exact.pieces, strict=True):
    assert (new.piece, new.score % SCORE_UNIT) == (old.piece, 0.0)
    if old.type == pb2.ModelProto.SentencePiece.NORMAL:
      assert abs(new.score - old.score) <= SCORE_UNIT / 2
  prose = (ROOT / "WORKSPACE.md").read_text()
  pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
  for line in prose.splitlines():
    assert tokenizer.encode(line) == pieces.encode(line)


def test_special_ids_disappear_from_text(tokenizer):
  ids = [PAD, BOS, *tokenizer.encode("pick"), EOS]
  assert tokenizer.decode(ids) == "pick"


def test_rare_ids_are_plain_pieces(tokenizer):
  ids = tokenizer.rare_ids(NUM_BINS)
  pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
  assert len(set(ids)) == NUM_BINS and max(ids) < pieces.vocab_size()
  for i in ids:
    piece = pieces.id_to_piece(i)
    assert pieces.piece_to_id(piece) == i
    assert piece.isprintable() and not piece.strip("▁").isdecimal()
    assert not (pieces.is_control(i) or pieces.is_byte(i))


def test_rare_ids_skip_fillers_and_invisible_pieces(tokenizer):
  proto = pb2.ModelProto.FromString(tokenizer.model)
  for piece in ("\u202d", "<unused0>"):
    proto.pieces.add(piece=piece, score=-1e9)  # rarer than all others
  ids = Tokenizer(proto.SerializeToString()).rare_ids(NUM_BINS)
  assert ids == tokenizer.rare_ids(NUM_BINS)


def test_rare_ids_have_the_lowest_scores(tokenizer):
  pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
  fewer = {pieces.get_score(i) for i in tokenizer.rare_ids(100)}
  more = {pieces.get_score(i) for i in tokenizer.rare_ids(200)}
  assert max(fewer) <= max(more) and min(fewer) == min(more)


def test_a_small_vocabulary_cannot_hold_action_tokens(tokenizer):
  with pytest.raises(ValueError, match="expected at least 9999 for the action"):
    tokenizer.rare_ids(9999)


def test_unknown_route_names_the_known_ones(tokenizer):
  with pytest.raises(ValueError, match="expected one of: rare, integers"):
    tokenizer.action_route("rarest")


def test_a_file_that_is_not_sentencepiece(tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_text('{"model": "BPE"}')
  with pytest.raises(
    ValueError, match=r"tokenizer\.json: got 16 bytes that are not a Sentence"
  ):
    Tokenizer.from_file(path)
  with pytest.raises(ValueError, match=r"which does not exist; pass Gemma's"):
    Tokenizer.from_file(tmp_path / "missing.model")


def test_other_special_ids_are_refused(tokenizer):
  proto = pb2.ModelProto.FromString(tokenizer.model)
  proto.trainer_spec.bos_id, proto.trainer_spec.eos_id = 1, 2
  proto.pieces[1].piece, proto.pieces[2].piece = "<bos>", "<eos>"
  with pytest.raises(ValueError, match=r"pad, eos, bos = \(0, 2, 1\), expect"):
    Tokenizer(proto.SerializeToString())


def test_a_file_that_holds_loc_and_seg_is_the_same_vocabulary(tokenizer):
  """As PaliGemma's own file does, whose last pieces they are."""
  model = pb2.ModelProto.FromString(tokenizer.model)
  names = [f"<loc{i:04d}>" for i in range(1024)]
  names += [f"<seg{i:03d}>" for i in range(128)]
  for name in names:
    model.pieces.add(
      piece=name,
      score=0.0,
      type=pb2.ModelProto.SentencePiece.USER_DEFINED,
    )
  whole = Tokenizer(model.SerializeToString())
  assert whole.vocab_size == tokenizer.vocab_size
  assert whole.action_route("rare") == tokenizer.action_route("rare")
  text = "detect cat <loc0012><loc1023> <seg000> ; dog"
  assert whole.encode(text) == tokenizer.encode(text)
  assert whole.decode(whole.encode(text)) == text
