"""Trains the small tokenizer that stands in for Gemma's where that is absent.

  python -m data.make_tokenizer            # from the root of the repository

makes `data/small_tokenizer.model`, a SentencePiece unigram model of 2,048
pieces that keeps Gemma's conventions: <pad> <eos> <bos> <unk> are 0 1 2 3,
unknown characters fall back to bytes, every digit and every space can stand
alone, no space is added or dropped, and "\\n" is one piece. Tests, the quick
start and the examples use it; a real run brings Gemma's own file.

It learns from data/tokenizer_corpus.py, of which a part changes with Python's
version. The committed file was made with CPython 3.11.7. Training on the same
text gives the same pieces.
"""

import io
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
from absl import app, flags

from data.tokenizer_corpus import (
  EXACT_INSTRUCTIONS,
  ROBOT_FRAMES,
  corpus,
  fingerprint,
  robot_prompts,
)
from launch import program
from rt2_jax.errors import UserError
from rt2_jax.storage import locate, write

VOCABULARY_SIZE = 2048
DEFAULT_OUTPUT = Path(__file__).with_name("small_tokenizer.model")


def train(
  sentences: Sequence[str],
  vocabulary_size: int = VOCABULARY_SIZE,
  whole: Sequence[str] = (),
) -> bytes:
  """Trains the model on one thread, deterministically; returns its file.

  Args:
    sentences: what the pieces are learnt from.
    vocabulary_size: how many there are.
    whole: pieces that the vocabulary holds in any case.
  """
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_writer=model,
    model_type="unigram",
    vocab_size=vocabulary_size,
    num_threads=1,
    minloglevel=2,
    # Gemma's conventions.
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    unk_piece="<unk>",
    user_defined_symbols=["\n", *whole],
    byte_fallback=True,
    split_digits=True,
    add_dummy_prefix=False,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    character_coverage=1.0,
  )
  return model.getvalue()


def ordinary_pieces(
  tokenizer: sentencepiece.SentencePieceProcessor,
) -> list[int]:
  """Lists ids of printable, unambiguous words: no control or byte piece."""

  def is_ordinary(i: int) -> bool:
    word = tokenizer.id_to_piece(i).replace("▁", "")
    special = (
      tokenizer.is_control(i)
      or tokenizer.is_byte(i)
      or tokenizer.is_unknown(i)
      or word == "\n"
    )
    one_to_one = tokenizer.piece_to_id(tokenizer.id_to_piece(i)) == i
    return not special and word != "" and word.isprintable() and one_to_one

  return [i for i in range(tokenizer.get_piece_size()) if is_ordinary(i)]


def rare_pieces(
  tokenizer: sentencepiece.SentencePieceProcessor,
) -> list[int]:
  """Lists the ordinary pieces that no robot prompt of the corpus uses."""
  used = set().union(*tokenizer.encode(robot_prompts()))
  return [i for i in ordinary_pieces(tokenizer) if i not in used]


def check_round_trip(
  tokenizer: sentencepiece.SentencePieceProcessor, sentences: Iterable[str]
) -> None:
  """Raises unless every sentence survives encode and decode unchanged."""
  for sentence in sentences:
    decoded = tokenizer.decode(tokenizer.encode(sentence))
    if decoded != sentence:
      raise UserError(
        f"round trip: got {decoded!r}, expected {sentence!r}; a trainer option "
        "that rewrites text (normalisation, spaces) is on in train()"
      )


def report(tokenizer: sentencepiece.SentencePieceProcessor) -> str:
  """Says how well the tokenizer does what it is for."""
  prompts = [p for p in robot_prompts() if p.startswith("Q:")]
  lengths = [len(ids) for ids in tokenizer.encode(prompts)]
  example = ROBOT_FRAMES[0].format(EXACT_INSTRUCTIONS[0])
  lines = [
    f"{tokenizer.get_piece_size()} pieces, of which "
    f"{len(ordinary_pieces(tokenizer))} ordinary and "
    f"{len(rare_pieces(tokenizer))} of these in no robot prompt",
    f"{sum(lengths) / len(lengths):.1f} tokens per robot prompt on average, "
    f"{max(lengths)} at most",
  ]
  for text in (example, *EXACT_INSTRUCTIONS):
    pieces = tokenizer.encode(text, out_type=str)
    lines.append(f"{len(pieces):4d}  {' '.join(pieces)}")
  return "\n".join(lines)


@program.main
def main():
  output = locate(flags.FLAGS.output, "--output")
  sentences = corpus()
  print(
    f"training on {len(sentences)} sentences, corpus {fingerprint(sentences)} "
    f"(CPython {platform.python_version()})"
  )
  model = train(sentences)
  tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
  check_round_trip(
    tokenizer, [*robot_prompts(), "  two  spaces\nnew line\n", "grüße 你好 🤖"]
  )
  write(output, model)
  print(f"{output}: {len(model) / 1000:.1f} kB, round trip exact")
  print(report(tokenizer))


if __name__ == "__main__":
  flags.DEFINE_string("output", str(DEFAULT_OUTPUT), "Where to write the model")
  app.run(main)
