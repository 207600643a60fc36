"""Pictures of held-out steps."""

import numpy as np

from rt2_jax.action_spaces import RT2
from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.evaluators.panels import Chosen, Panel
from rt2_jax.observation import Batched

BLUE, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (0, 255, 0)


def batches(sizes):
  """Steps whose image, instruction and action say their number."""
  first = 0
  for size in sizes:
    numbers = np.arange(first, first + size)
    image = np.zeros((size, 2, 8, 8, 3), np.uint8)
    image[:, 0, :4, :6] = numbers[:, None, None, None]
    shape = np.broadcast_to([(4, 6), (0, 0)], (size, 2, 2))
    words = [f"step {number}" for number in numbers]
    seen = Batched(image, shape, words, np.zeros((size, 0)))
    yield seen, np.full((size, 1, 8), numbers[:, None, None])
    first += size


def test_steps_are_chosen_evenly_over_all_batches():
  chosen = Chosen(count=3, every=3)
  passed = list(chosen.watch(batches([4, 4, 3])))
  assert [len(actions) for _, actions in passed] == [4, 4, 3]
  assert chosen.numbers == [0, 3, 6]
  recorded = np.concatenate([actions for _, actions in passed])
  for panel, number in zip(
    chosen.panels(RT2, recorded, -recorded), (0, 3, 6), strict=True
  ):
    (image,) = panel.images  # the robot lacks the second camera
    assert image.shape == (4, 6, 3) and (image == number).all()
    assert panel.instruction == f"step {number}"
    assert (panel.recorded == number).all() and (
      panel.predicted == -number
    ).all()


def test_none_are_kept_when_none_are_shown():
  chosen = Chosen(count=0, every=1)
  list(chosen.watch(batches([4])))
  assert not chosen.panels(RT2, np.zeros((4, 1, 8)), np.zeros((4, 1, 8)))


def test_a_mark_stands_where_its_number_lies():
  space = ActionSpace("one", "base", (Dimension("dx", "m", 1.0, 3.0),))
  images = (np.full((10, 10, 3), GREEN, np.uint8),)

  def middle(predicted, colour):
    panel = Panel(images, "go $1", space, np.ones((1, 1)), predicted)
    drawn = panel.draw().astype(np.int32)
    assert (drawn == GREEN).all(-1).any()
    mask = (abs(drawn - colour) < 8).all(-1)
    # Letters have no solid squares.
    squares = np.lib.stride_tricks.sliding_window_view(mask, (3, 3))
    return squares.all((2, 3)).any(0).nonzero()[0].mean()

  low, between, high = (middle(np.full((1, 1), x), ORANGE) for x in (1, 2, 3))
  assert low < between < high
  np.testing.assert_allclose(between - low, high - between, atol=2.0)
  np.testing.assert_allclose(middle(np.full((1, 1), 3), BLUE), low, atol=2.0)
