"""Bins, text and ids: bounds on the error, round trips, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt2_jax import action_tokens
from rt2_jax.action_spaces import LANGUAGE_TABLE, RT1, RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.actions import NUM_BINS

RARE = action_tokens.RareTokens(tuple(range(1000, 1000 + NUM_BINS)))
INTEGERS = action_tokens.IntegerTokens(
  tuple((c, 10 + i) for i, c in enumerate("0123456789- ")), eos=1
)
SPACES = [RT2, RT1, LANGUAGE_TABLE]
spaces = st.sampled_from(SPACES)
routes = st.sampled_from([RARE, INTEGERS])


@st.composite
def actions_in(draw, space):
  """An action inside the bounds of `space`."""
  return np.array(
    [
      draw(
        st.sampled_from(d.values)
        if d.values
        else st.floats(d.low, d.high, allow_nan=False)
      )
      for d in space.dimensions
    ]
  )


@st.composite
def bins_in(draw, space):
  return np.array([draw(st.integers(0, d.size - 1)) for d in space.dimensions])


@given(st.data(), spaces)
def test_decoding_errs_by_half_a_bin_at_most(data, space):
  tokenizer = ActionTokenizer(space, RARE)
  action = data.draw(actions_in(space))
  error = np.abs(tokenizer.decode(tokenizer.encode(action[None])) - action)
  half = [
    0.0 if d.values else (d.high - d.low) / NUM_BINS / 2
    for d in space.dimensions
  ]
  assert (error <= np.array(half) + 1e-6).all()


def test_decoding_has_no_bias():
  tokenizer = ActionTokenizer(RT2, RARE)
  dx = RT2.dimensions[1]
  values = np.linspace(dx.low, dx.high, 25_601)[:-1] + 1e-6
  action = np.zeros((len(values), 8))
  action[:, 1] = values
  ids = tokenizer.encode(action[:, None])
  error = tokenizer.decode(ids)[:, 0, 1] - values
  assert abs(error.mean()) < 1e-4 * (dx.high - dx.low)


@given(st.data(), spaces, routes, st.booleans())
def test_every_bin_survives_decode_and_encode(data, space, route, rt1_compat):
  tokenizer = ActionTokenizer(space, route, rt1_compat)
  bins = data.draw(bins_in(space))[None]
  if rt1_compat:  # truncation may lose one bin to rounding, as in RT-1
    again = tokenizer.to_bins(tokenizer.to_action(bins))
    assert np.abs(again - bins).max() <= 1
    return
  ids = tokenizer.encode(tokenizer.to_action(bins))
  np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)
  np.testing.assert_array_equal(tokenizer.to_bins(tokenizer.decode(ids)), bins)


def test_values_outside_the_bounds_are_clipped():
  tokenizer = ActionTokenizer(RT2, RARE)
  bins = tokenizer.to_bins(np.array([0, 22.1, -5.5, 1, -2, 2, 0, 1.01]))
  np.testing.assert_array_equal(bins, [1, 255, 0, 255, 0, 255, 127, 255])


def test_rt1_compat_truncates_as_rt1_does():
  tokenizer = ActionTokenizer(RT1, RARE, rt1_compat=True)
  zeros = np.zeros(11)
  zeros[0] = 1.0  # mode 1: the arm moves
  bins = tokenizer.to_bins(zeros)
  # int(0.5 * 255) = 127, which decodes to -1/255 of the half range: the drift
  # of robots at rest that RT-1's users know.
  np.testing.assert_array_equal(bins, [1] + [127] * 10)
  np.testing.assert_allclose(tokenizer.to_action(bins)[1], -1 / 255, rtol=1e-5)
  ends = np.array([1, 1, -1, 0.999, 0, 0, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(tokenizer.to_bins(ends)[1:4], [255, 0, 254])


@given(st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6))
def test_rt1_compat_on_rt2s_space_gives_rt1s_tokens(motion):
  """Of the six numbers that both have, in the same order and units."""
  rt1 = ActionTokenizer(RT1, RARE, rt1_compat=True)
  rt2 = ActionTokenizer(RT2, RARE, rt1_compat=True)
  expected = rt1.to_bins(np.array([1, *motion, 0, 0, 0, 0]))[1:7]
  bins = rt2.to_bins(np.array([0, *motion, 1]))
  np.testing.assert_array_equal(bins[1:7], expected)
  np.testing.assert_array_equal(
    rt2.to_action(bins)[1:7],
    rt1.to_action(np.array([1, *expected] + [0] * 4))[1:7],
  )


def test_rt1_compat_keeps_bounds_of_ones_own():
  space = RT2.with_bounds({"dx": (-0.03, 0.05)})
  tokenizer = ActionTokenizer(space, RARE, rt1_compat=True)
  _, dx, dy, *_, gripper = tokenizer.space.dimensions
  assert (dx.low, dx.high, dy.low, dy.high) == (-0.03, 0.05, -1.0, 1.0)
  assert (gripper.low, gripper.high) == (0.0, 1.0)
  stored = tokenizer.to_dict() | {"space": RT2.to_dict()}
  with pytest.raises(ValueError, match=r"rt1_compat .*'rt2', expected RT-1's"):
    ActionTokenizer.from_dict(stored)


def test_terminate_is_number_0_and_moving_is_number_1():
  tokenizer = ActionTokenizer(RT2, RARE)
  assert tokenizer.to_text(np.zeros((1, 8))).startswith("1 127 127")
  assert tokenizer.to_action(np.zeros(8, int))[0] == 1.0


def test_a_robot_at_rest_stays_at_rest():
  tokenizer = ActionTokenizer(RT2, RARE)
  rest = tokenizer.decode(tokenizer.encode(np.zeros((1, 8))))
  np.testing.assert_allclose(rest[0, 1:7], 0.0, atol=1e-9)


def test_the_papers_string_round_trips():
  tokenizer = ActionTokenizer(RT2, RARE)
  text = "1 128 91 241 5 101 127 217"
  action = tokenizer.to_action(np.array([list(map(int, text.split()))]))
  assert action.shape == (1, 8) and action.dtype == np.float32
  assert tokenizer.to_text(action) == text


def test_language_table_prints_centimetres():
  tokenizer = ActionTokenizer(LANGUAGE_TABLE, INTEGERS)
  action = np.array([[-0.1, 0.034]])
  assert tokenizer.to_text(action) == "-10 3"
  again = tokenizer.decode(tokenizer.encode(action))
  np.testing.assert_allclose(again, [[-0.1, 0.03]])


@pytest.mark.parametrize(
  ("position", "number", "message"),
  [
    (7, 256, "got 256 for action dimension 'gripper'"),
    (0, 2, "'terminate', expected 0..1"),
  ],
)
def test_numbers_outside_a_dimension_are_refused(position, number, message):
  bins = np.zeros((1, 8), int)
  bins[0, position] = number
  with pytest.raises(ValueError, match=message):
    ActionTokenizer(RT2, RARE).to_action(bins)


def test_an_action_with_nan_names_the_dimension():
  action = np.zeros(8)
  action[3] = np.nan
  with pytest.raises(ValueError, match=r"got nan for action dimension 'dz'"):
    ActionTokenizer(RT2, RARE).encode(action[None])


def test_an_action_of_another_length_is_refused():
  with pytest.raises(ValueError, match=r"shape \(1, 7\), .*8.*terminat"):
    ActionTokenizer(RT2, RARE).encode(np.zeros((1, 7)))


@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8), (2, 1, 8)])
def test_a_chunk_of_another_horizon_is_refused(shape):
  with pytest.raises(ValueError, match=r"expected \[..., 2, 8\]"):
    ActionTokenizer(RT2, RARE, horizon=2).encode(np.zeros(shape))


@given(st.data(), spaces, routes, st.integers(1, 4))
def test_a_chunk_is_its_actions_one_after_the_other(data, space, route, length):
  one = ActionTokenizer(space, route)
  chunk = ActionTokenizer(space, route, horizon=length)
  actions = np.stack([data.draw(actions_in(space)) for _ in range(length)])
  ids = chunk.encode(actions)
  separate = [one.decode(one.encode(action[None]))[0] for action in actions]
  np.testing.assert_array_equal(chunk.decode(ids), separate)
  assert chunk.to_text(actions).split() == [
    word for action in actions for word in one.to_text(action[None]).split()
  ]
  assert len(ids) <= chunk.answer_length == length * one.answer_length
  counts = chunk.token_counts(actions)
  assert counts.shape == (length * len(space),)
  assert counts.sum() == len(ids) + (route is INTEGERS)  # eos


def test_an_id_that_is_no_action_token_is_refused():
  with pytest.raises(ValueError, match="got token id 999, which is no action"):
    ActionTokenizer(RT2, RARE).decode(np.array([1001] * 7 + [999]))


def test_bounds_are_an_affine_map():
  space = RT2.with_bounds({"dx": (-0.03, 0.05)})
  narrow = ActionTokenizer(space, RARE)
  wide = ActionTokenizer(RT2.with_bounds({"dx": (-1, 1)}), RARE)
  x = np.linspace(-0.03, 0.0499, 50)
  action = np.zeros((50, 8))
  action[:, 1] = x
  mapped = action.copy()
  mapped[:, 1] = (x + 0.03) / 0.08 * 2 - 1
  np.testing.assert_array_equal(narrow.to_bins(action), wide.to_bins(mapped))


@given(st.data(), spaces, routes, st.integers(1, 3))
def test_any_walk_through_the_grammar_is_a_valid_chunk(
  data, space, route, horizon
):
  """Whatever a model prefers, decoding ends in actions."""
  tokenizer = ActionTokenizer(space, route, horizon=horizon)
  grammar = tokenizer.grammar
  state, ids = 0, []
  for _ in range(grammar.length):
    choices = np.flatnonzero(grammar.allowed[state])
    k = data.draw(st.sampled_from(choices.tolist()))
    ids.append(grammar.ids[k])
    state = grammar.next_state[state, k]
  action = tokenizer.decode(np.array(ids))
  assert action.shape == (horizon, len(space)) and np.isfinite(action).all()


@given(st.data(), spaces, routes, st.integers(1, 3))
def test_the_grammar_allows_every_chunk(data, space, route, horizon):
  tokenizer = ActionTokenizer(space, route, horizon=horizon)
  grammar = tokenizer.grammar
  bins = np.stack([data.draw(bins_in(space)) for _ in range(horizon)])
  ids = tokenizer.encode(tokenizer.to_action(bins))
  state = 0
  for i in ids:
    k = grammar.ids.tolist().index(i)
    assert grammar.allowed[state, k]
    state = grammar.next_state[state, k]
  if route is INTEGERS:
    assert grammar.allowed[state, -1]  # eos may follow


@pytest.mark.parametrize("route", [RARE, INTEGERS])
def test_the_json_form_round_trips(route):
  space = RT2.with_bounds({"dx": (-0.03, 0.05)})
  tokenizer = ActionTokenizer(space, route, rt1_compat=True, horizon=3)
  assert ActionTokenizer.from_dict(tokenizer.to_dict()) == tokenizer


def test_rare_tokens_have_an_id_for_each_bin():
  few = action_tokens.RareTokens(RARE.ids[1:])
  with pytest.raises(ValueError, match="got 255 action ids, expected 256"):
    ActionTokenizer(RT2, few)


def test_bin_values_match_decoding():
  tokenizer = ActionTokenizer(RT2, RARE)
  table = tokenizer.bin_values()
  assert np.isnan(table[0, 2:]).all() and np.isfinite(table[1:]).all()
  np.testing.assert_array_equal(table[0, :2], [1.0, 0.0])
  seventh = tokenizer.to_action(np.array([1] + [7] * 7))
  np.testing.assert_array_equal(table[1:, 7], seventh[1:])
