"""The exported tokenizer gives the ids of ours, for every text."""

import json
import random
import re

import pytest
import sentencepiece
import transformers

from rt2_jax.tokenizer import Piece, Proto, Tokenizer
from rt2_jax.weights import hf_config, hf_processor
from tests import tiny_models
from tests.conftest import ROOT

# What a byte-pair model of Gemma's kind defines beside its letters.
OWN_PIECES = ["\n", "\n\n", "▁▁", "▁▁▁", "<mask>", "<table>", "the▁robot"]
CONTROL = re.compile("<(pad|eos|bos|unk|image)>")
NEARLY_TOKENS = [
  *(
    "<loc0012>",
    "<seg127>",
    "<loc1024>",
    "<seg128>",
    "<loc\u0660\u0660\u0660\u0661>",
    "<loc00",
  ),
  *("<0x41>", "<0x4", "eos>", "<image", "<unused7>", "<mask>", "▁", "<"),
  "<loc\u0660\u0660\u0660\u0661>",
]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Tokenizer:
  """A vocabulary of Gemma's kind, trained on some prose."""
  folder = tmp_path_factory.mktemp("bpe")
  sentencepiece.SentencePieceTrainer.train(
    input=str(ROOT / "WORKSPACE.md"),
    model_prefix=str(folder / "bpe"),
    model_type="bpe",
    vocab_size=800,
    byte_fallback=True,
    split_digits=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    user_defined_symbols=OWN_PIECES,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    minloglevel=2,
  )
  return Tokenizer.from_file(folder / "bpe.model")


@pytest.fixture(scope="module")
def pictures() -> Tokenizer:
  """Words with spaces in them are single pieces that a user defined."""
  return Tokenizer.from_file(ROOT / "data/picture_tokenizer.model")


def exported(tokenizer, folder):
  """What AutoProcessor makes of the files that we write."""
  config = tiny_models.config("gemma1", tokenizer.vocab_size)
  hf_processor.write(tokenizer.model, config.img, folder)
  fields = hf_config.to_config(config, "float32")
  (folder / "config.json").write_text(json.dumps(fields))
  return transformers.AutoProcessor.from_pretrained(folder).tokenizer


def strange_texts(tokenizer, count):
  """Pieces, parts of pieces, letters, spaces and half tokens, at random."""
  rng = random.Random(0)
  pieces = Proto.FromString(tokenizer.model).pieces
  words = [p.piece.replace("▁", " ") for p in pieces if p.type != Piece.CONTROL]
  own = [p.piece for p in pieces if p.type == Piece.USER_DEFINED]
  letters = [*map(chr, range(0x250)), *"夕🤖▁\u3000\u202d\0", *" \n" * 20]
  letters += map(chr, range(0x4E00, 0x4E40))
  for i in range(count):
    kinds = (words, own, letters, words + NEARLY_TOKENS * 50, words + letters)
    parts = rng.choices(kinds[i % len(kinds)], k=rng.randrange(1, 15))
    if i % 3 == 0:
      parts = [part[: rng.randrange(1, len(part) + 1)] for part in parts]
    text = (" " if i % 7 == 0 else "").join(parts)
    if not CONTROL.search(text):
      yield text


@pytest.mark.parametrize("kind", ["tokenizer", "pictures", "bpe"])
def test_every_text_becomes_the_same_ids(kind, request, tmp_path):
  ours = request.getfixturevalue(kind)
  theirs = exported(ours, tmp_path)
  assert theirs.convert_tokens_to_ids("<image>") == ours.vocab_size
  assert len(theirs) == ours.vocab_size + 1  # and nothing of their own
  assert (theirs.pad_token_id, theirs.eos_token_id) == (0, 1)
  prose = (ROOT / "README.md").read_text()
  texts = [prose[i : i + 80] for i in range(0, len(prose), 90)]
  texts = [text for text in texts if not CONTROL.search(text)]
  texts += strange_texts(ours, 4000)
  ids = theirs(texts, add_special_tokens=False)["input_ids"]
  assert len(texts) > 3900
  for text, got in zip(texts, ids, strict=True):
    assert got == ours.encode(text), text
    assert theirs.decode(got) == ours.decode(got)


def test_longer_pieces_of_a_users_own_are_preferred(pictures):
  """As SentencePiece 0.2.3 has it, with which models were trained."""
  pieces = Proto.FromString(pictures.model).pieces
  for text, expected in (
    (" goes with painting", ["▁goes", "▁with", "▁pain", "tin", "g"]),
    (" architect", ["▁arc", "h", "it", "e", "c", "t"]),
    ("traffic stars", ["traffic", "▁stars"]),
  ):
    assert [pieces[i].piece for i in pictures.encode(text)] == expected


@pytest.mark.parametrize("name", ["eos", "bos", "pad", "unk", "image"])
def test_control_words_are_tokens_there_and_refused_here(
  name, tokenizer, tmp_path
):
  word = f"<{name}>"
  theirs = exported(tokenizer, tmp_path)
  ids = theirs(f"pick {word} now", add_special_tokens=False)["input_ids"]
  assert theirs.convert_tokens_to_ids(word) in ids
  with pytest.raises(ValueError, match=f"the control word '{word}'"):
    tokenizer.encode(f"pick {word} now")


def change_normalizer(proto):
  proto.normalizer_spec.add_dummy_prefix = True


def add_unused(proto):
  proto.pieces.add(piece="never", score=-9.0, type=Piece.UNUSED)


def add_piece_across_bytes(proto):
  proto.pieces.add(piece="0xf", score=-9.0)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (change_normalizer, "expected one like Gemma's: identity"),
    (add_unused, "1 unused pieces, such as 'never', expected none"),
    (add_piece_across_bytes, "the piece '0xf', expected none that holds '0x'"),
  ],
)
def test_what_cannot_be_expressed_is_refused(tokenizer, change, message):
  proto = Proto.FromString(tokenizer.model)
  change(proto)
  with pytest.raises(ValueError, match=message):
    hf_processor.make_tokenizer(proto)


def test_byte_pairs_out_of_order_are_refused(bpe):
  proto = Proto.FromString(bpe.model)
  proto.pieces[-300].score = 5.0
  with pytest.raises(ValueError, match=r"score of .*5\.0"):
    hf_processor.make_tokenizer(proto)
