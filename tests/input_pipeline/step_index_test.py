"""Indexes of shards joined: numbers of any size, and parts of shards."""

import numpy as np
import pytest

from rt2_jax.action_spaces import LANGUAGE_TABLE
from rt2_jax.byte_ranges import LocalStorage
from rt2_jax.input_pipeline.index import Indexed
from rt2_jax.input_pipeline.kept_index import to_column
from rt2_jax.input_pipeline.step_index import StepIndex, StepSource


def shard(number: int, episodes=(1,), first=0, stop=10) -> Indexed:
  """Steps whose offsets and actions tell their shard and place."""
  count = sum(episodes)
  places = np.arange(count)
  columns = {
    "offset": (number * 100 + places).astype(np.uint64)[:, None],
    "length": np.full((count, 1), 7, np.uint32),
    "checksum": places.astype(np.uint32)[:, None],
    "record": np.arange(len(episodes), dtype=np.uint32),
    "start": np.cumsum([0, *episodes])[:-1].astype(np.uint32),
    "size": np.full((len(episodes), 2), [number % 500, 8], np.uint16),
    "frame": places.astype(np.uint32),
    "episode": np.repeat(np.arange(len(episodes)), episodes).astype(np.uint32),
    "text": np.zeros(count, np.uint32),
    "texts": to_column([f"text {number % 3}"]),
    "plan": np.zeros(0, np.uint32),
    "plans": to_column([]),
    "action": np.full((count, 2), number, np.float32),
    "state": np.zeros((count, 0), np.float32),
  }
  return Indexed(f"shard {number}", lambda: columns, first, stop)


def test_more_shards_than_16_bits_count():
  index = StepIndex.merge([shard(n) for n in range(300)])
  source = StepSource(LocalStorage(), index, LANGUAGE_TABLE)
  for i in (0, 255, 256, 299):
    (request,) = source.requests([i])[0]
    assert request.path == f"shard {i}" and request.offset == i * 100
    assert source.instruction(i) == f"text {i % 3}"
  assert index.episode.max() == 299 and len(index.texts) == 3
  for numbers in (index.file, index.episode, index.frame, index.text):
    assert np.iinfo(numbers.dtype).max > 2**31


@pytest.mark.parametrize(
  ("first", "stop", "offsets", "episodes"),
  [
    (0, 3, [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 2]),
    (1, 3, [3, 4, 5], [0, 1, 1]),
    (0, 1, [0, 1, 2], [0, 0, 0]),
    (1, 2, [3], [0]),
    (3, 9, [], []),
  ],
)
def test_a_part_of_a_shard(first, stop, offsets, episodes):
  parts = [shard(1, (3, 1, 2), first, stop), shard(2, (2,))]
  index = StepIndex.merge(parts)
  np.testing.assert_array_equal(
    index.offset[:, 0], [*(100 + x for x in offsets), 200, 201]
  )
  after = max(episodes, default=-1) + 1
  np.testing.assert_array_equal(index.episode, [*episodes, after, after])
  source = StepSource(LocalStorage(), index, LANGUAGE_TABLE, history=2)
  for i in range(len(index)):
    before, last = source.requests([i])[0]
    assert last.offset == index.offset[i]
    inside = i and index.episode[i] == index.episode[i - 1]
    assert before.offset == index.offset[i - 1 if inside else i]


def test_steps_are_left_out_with_their_images_kept():
  index = StepIndex.merge([shard(1, (4,))])
  some = index.only(np.array([False, True, False, True]))
  source = StepSource(LocalStorage(), some, LANGUAGE_TABLE, history=2)
  assert [r.offset for r in source.requests([1])[0]] == [102, 103]
  assert len(source) == 2


def test_plans_for_some_steps_are_refused():
  one = shard(1, (2,))
  planned = {**one.read(), "plan": np.zeros(2, np.uint32)}
  planned["plans"] = to_column(["apple"])
  with pytest.raises(ValueError, match="got plans for 2 of 3 steps, expected"):
    StepIndex.merge([one._replace(read=lambda: planned), shard(2)])
