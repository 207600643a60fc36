"""Action encodings: an action's numbers as tokens, and their grammar.

Two routes, as in the paper (section 3.2): one rarely used token per bin, or
the number's digits. Either gives a `Grammar`, so that decoding can only ever
yield valid actions.

Numpy only. Shapes: D dimensions, L tokens of an answer, K candidate tokens,
Q states.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rt2_jax.errors import UserError


class Grammar(NamedTuple):
  """Finite automaton of valid answers: the tokens that may come next.

  State 0 is the start. `length` steps lead from it to a complete action.

  Attributes:
    ids: int32[K] vocabulary ids that occur in actions at all.
    allowed: bool[Q, K] tokens that may follow in each state.
    next_state: int32[Q, K] where each token leads.
    length: number of tokens to decode.
  """

  ids: np.ndarray
  allowed: np.ndarray
  next_state: np.ndarray
  length: int


@dataclasses.dataclass(frozen=True)
class RareTokens:
  """Writes bin i as one rarely used id, as RT-2-PaLM-E does.

  Attributes:
    ids: different vocabulary ids; bin i is written as ids[i].
  """

  ids: tuple[int, ...]

  def __post_init__(self):
    if len(set(self.ids)) != len(self.ids):
      raise UserError(
        f"got {len(self.ids)} action ids, {len(set(self.ids))} of them "
        "different; expected an id of its own for each bin"
      )

  @functools.cached_property
  def _ids(self) -> np.ndarray:
    return np.asarray(self.ids, np.int32)

  def answer_length(self, sizes: Sequence[int]) -> int:
    return len(sizes)

  def token_counts(self, numbers: np.ndarray) -> np.ndarray:
    """Counts the tokens of each number, int32[D]."""
    return np.ones(len(numbers), np.int32)

  def to_ids(self, numbers: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Converts int32[..., D] bins to int32[..., D] ids."""
    return self._ids[numbers - firsts]

  def of_bins(self, bins: np.ndarray) -> np.ndarray:
    """Writes n chunks, int[n, H, D] bins -> int32[n, H * D] ids."""
    return self._ids[bins.reshape(len(bins), -1)]

  def to_numbers(self, ids: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Converts int32[..., D] ids to int32[..., D] numbers.

    Raises:
      UserError: an id that is not an action token, or a wrong length.
    """
    ids = np.asarray(ids)
    if ids.shape[-1] != len(firsts):
      raise UserError(
        f"got {ids.shape[-1]} action tokens, expected {len(firsts)}"
      )
    bins = np.full(ids.shape, -1, np.int32)
    order = np.argsort(self.ids)
    table = np.asarray(self.ids)[order]
    at = np.minimum(np.searchsorted(table, ids), len(table) - 1)
    bins = np.where(table[at] == ids, order[at], -1).astype(np.int32)
    if (bins < 0).any():
      raise UserError(
        f"got token id {int(ids[bins < 0].flat[0])}, which is no action token"
      )
    return bins + firsts.astype(np.int32)

  def grammar(self, sizes: Sequence[int], firsts: Sequence[int]) -> Grammar:
    del firsts  # ids stand for bins, however the text form counts them
    bins = np.arange(len(self.ids))
    allowed = bins[None] < np.asarray(sizes)[:, None]
    step = np.minimum(np.arange(len(sizes)) + 1, len(sizes) - 1)
    next_state = np.repeat(step[:, None], len(bins), 1).astype(np.int32)
    return Grammar(self._ids, allowed, next_state, len(sizes))


@dataclasses.dataclass(frozen=True)
class IntegerTokens:
  """Writes the text form, character by character, as RT-2-PaLI-X does.

  PaLI-X has one token per integer; Gemma's vocabulary splits digits, so that
  an action takes about 30 tokens and ends with `eos`.

  Attributes:
    characters: the vocabulary id of each of "0".."9", "-" and " ".
    eos: the id that ends an answer.
  """

  characters: tuple[tuple[str, int], ...]
  eos: int

  def answer_length(self, sizes: Sequence[int]) -> int:
    return 4 * len(sizes)  # three digits or a sign and two, and a separator

  def token_counts(self, numbers: np.ndarray) -> np.ndarray:
    """Counts the tokens of each number and of its end, int32[D].

    That is the space behind it, or `eos`.
    """
    return np.asarray([len(str(int(n))) + 1 for n in numbers], np.int32)

  def to_ids(self, numbers: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Converts int32[D] numbers to int32[L] ids, `eos` not included."""
    del firsts  # the text form prints the numbers as they are
    table = dict(self.characters)
    text = " ".join(str(int(n)) for n in numbers)
    return np.asarray([table[c] for c in text], np.int32)

  def to_numbers(self, ids: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Converts int32[..., L] ids, up to `eos`, to int32[..., D] numbers."""
    ids = np.asarray(ids)
    if ids.ndim > 1:
      return np.stack([self.to_numbers(row, firsts) for row in ids])
    names = {i: c for c, i in self.characters}
    ends = np.flatnonzero(ids == self.eos)
    text = ""
    for i in ids[: ends[0] if ends.size else None]:
      if int(i) not in names:
        raise UserError(f"got token id {int(i)}, which is no action token")
      text += names[int(i)]
    return parse_numbers(text, len(firsts))

  def grammar(self, sizes: Sequence[int], firsts: Sequence[int]) -> Grammar:
    """Chains the tries of the legal numbers of each dimension."""
    ids = np.asarray([i for _, i in self.characters] + [self.eos], np.int32)
    column = {c: k for k, (c, _) in enumerate(self.characters)}
    end_of_answer = len(ids) - 1
    edges: list[dict[int, int]] = [{}]
    root = 0
    for d, (size, first) in enumerate(zip(sizes, firsts, strict=True)):
      complete = set()
      for number in range(first, first + size):
        state = root
        for c in str(number):
          if column[c] not in edges[state]:
            edges.append({})
            edges[state][column[c]] = len(edges) - 1
          state = edges[state][column[c]]
        complete.add(state)
      last = d == len(sizes) - 1
      root = len(edges)
      edges.append({end_of_answer: root} if last else {})
      for state in complete:
        edges[state][end_of_answer if last else column[" "]] = root
    allowed = np.zeros((len(edges), len(ids)), bool)
    next_state = np.zeros((len(edges), len(ids)), np.int32)
    for state, out in enumerate(edges):
      for k, target in out.items():
        allowed[state, k], next_state[state, k] = True, target
    return Grammar(ids, allowed, next_state, self.answer_length(sizes))


def route_to_dict(route: RareTokens | IntegerTokens) -> dict[str, Any]:
  """Converts a route to the JSON form that checkpoints store."""
  name = type(route).__name__
  return {"route": name, "route_args": dataclasses.asdict(route)}


def route_from_dict(data: Mapping[str, Any]) -> RareTokens | IntegerTokens:
  """Inverts `route_to_dict`."""
  args = data["route_args"]
  if data["route"] == "RareTokens":
    return RareTokens(tuple(args["ids"]))
  characters = tuple((c, i) for c, i in args["characters"])
  return IntegerTokens(characters, args["eos"])


class Writing(NamedTuple):
  """The written form of actions; equal for spaces that differ in bounds only.

  Attributes:
    route: turns numbers into ids.
    sizes: numbers of tokens that each of a chunk's H * D numbers can take.
    firsts: the lowest value of each number.
  """

  route: RareTokens | IntegerTokens
  sizes: tuple[int, ...]
  firsts: tuple[int, ...]

  def grammar(self) -> Grammar:
    return self.route.grammar(self.sizes, self.firsts)


def parse_numbers(text: str, count: int) -> np.ndarray:
  """Parses `"1 128 91 241 5 101 127 217"` to int32[count], or raises."""
  words = text.split(" ")
  numeric = all(w.removeprefix("-").isdecimal() and w.isascii() for w in words)
  if not numeric or len(words) != count:
    raise UserError(
      f"got action text {text!r}, expected {count} whole numbers joined by "
      f"single spaces, got {len(words)} words"
    )
  return np.asarray([int(w) for w in words], np.int32)
