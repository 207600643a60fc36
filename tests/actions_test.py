"""Bins, text and ids: bounds on the error, round trips, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt2_jax import action_tokens
from rt2_jax.action_tokens import NUM_BINS
from rt2_jax.actions import LANGUAGE_TABLE, RT1, RT2, ActionTokenizer

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


def test_sizes_of_the_three_spaces():
  assert [len(s) for s in SPACES] == [8, 11, 2]
  assert RT2.names == (
    "terminate", "dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper",
  )  # fmt: skip


@given(st.data(), spaces)
def test_decoding_errs_by_half_a_bin_at_most(data, space):
  tokenizer = ActionTokenizer(space, RARE)
  action = data.draw(actions_in(space))
  error = np.abs(tokenizer.decode(tokenizer.encode(action)) - action)
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
  error = tokenizer.decode(tokenizer.encode(action))[:, 1] - values
  assert abs(error.mean()) < 1e-4 * (dx.high - dx.low)


@given(st.data(), spaces, routes, st.booleans())
def test_every_bin_survives_decode_and_encode(data, space, route, rt1_compat):
  tokenizer = ActionTokenizer(space, route, rt1_compat)
  bins = data.draw(bins_in(space))
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
  assert tokenizer.to_text(np.zeros(8)).startswith("1 127 127")
  assert tokenizer.from_text("0 128 91 241 5 101 127 217")[0] == 1.0


def test_a_robot_at_rest_stays_at_rest():
  tokenizer = ActionTokenizer(RT2, RARE)
  rest = tokenizer.decode(tokenizer.encode(np.zeros(8)))
  np.testing.assert_allclose(rest[1:7], 0.0, atol=1e-9)


def test_the_papers_string_round_trips():
  tokenizer = ActionTokenizer(RT2, RARE)
  text = "1 128 91 241 5 101 127 217"
  action = tokenizer.from_text(text)
  assert action.shape == (8,) and action.dtype == np.float32
  assert tokenizer.to_text(action) == text


def test_language_table_prints_centimetres():
  tokenizer = ActionTokenizer(LANGUAGE_TABLE, INTEGERS)
  assert tokenizer.to_text(np.array([-0.1, 0.034])) == "-10 3"
  np.testing.assert_allclose(tokenizer.from_text("-10 3"), [-0.1, 0.03])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1 128 91 241 5 101 127", "expected 8 whole numbers.* got 7 words"),
    ("1 128 91 241 5 101 127 217 3", "got 9 words"),
    ("1 128 91 241 5 101 127 256", "got 256 for action dimension 'gripper'"),
    ("2 128 91 241 5 101 127 217", "'terminate', expected 0..1"),
    ("1  128 91 241 5 101 127 217", "single spaces"),
    ("1 128 91 241 5 101 127 217 ", "single spaces"),
    ("1 128 91 2.5 5 101 127 217", "whole numbers"),
    ("1 128 91 ٣ 5 101 127 217", "whole numbers"),
    ("", "whole numbers"),
  ],
)
def test_the_text_parser_is_strict(text, message):
  with pytest.raises(ValueError, match=message):
    ActionTokenizer(RT2, RARE).from_text(text)


def test_an_action_with_nan_names_the_dimension():
  action = np.zeros(8)
  action[3] = np.nan
  with pytest.raises(ValueError, match=r"got nan for action dimension 'dz'"):
    ActionTokenizer(RT2, RARE).encode(action)


def test_an_action_of_another_length_is_refused():
  with pytest.raises(ValueError, match=r"shape \(7,\), expected .*8.*terminat"):
    ActionTokenizer(RT2, RARE).encode(np.zeros(7))


def test_an_id_that_is_no_action_token_is_refused():
  with pytest.raises(ValueError, match="got token id 999, which is no action"):
    ActionTokenizer(RT2, RARE).decode(np.array([1001] * 7 + [999]))


def test_an_unknown_dimension_is_named():
  with pytest.raises(ValueError, match="did you mean 'gripper'"):
    RT2.with_bounds({"griper": (0, 1)})


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


@pytest.mark.parametrize(
  ("bounds", "message"),
  [
    ({"dx": (0.1, 0.1)}, "dimension 'dx'.* expected low < high"),
    ({"terminate": (0, 1)}, "'terminate', which is discrete"),
  ],
)
def test_bounds_that_make_no_bins_are_refused(bounds, message):
  with pytest.raises(ValueError, match=message):
    RT2.with_bounds(bounds)


@given(st.data(), spaces, routes)
def test_any_walk_through_the_grammar_is_a_valid_action(data, space, route):
  """Whatever a model prefers, decoding ends in an action."""
  tokenizer = ActionTokenizer(space, route)
  grammar = tokenizer.grammar
  state, ids = 0, []
  for _ in range(grammar.length):
    choices = np.flatnonzero(grammar.allowed[state])
    k = data.draw(st.sampled_from(choices.tolist()))
    ids.append(grammar.ids[k])
    state = grammar.next_state[state, k]
  action = tokenizer.decode(np.array(ids))
  assert action.shape == (len(space),) and np.isfinite(action).all()


@given(st.data(), spaces, routes)
def test_the_grammar_allows_every_action(data, space, route):
  tokenizer = ActionTokenizer(space, route)
  grammar = tokenizer.grammar
  ids = tokenizer.encode(tokenizer.to_action(data.draw(bins_in(space))))
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
  tokenizer = ActionTokenizer(space, route, rt1_compat=True)
  assert ActionTokenizer.from_dict(tokenizer.to_dict()) == tokenizer


def test_action_ids_must_be_different():
  with pytest.raises(ValueError, match="got 256 action ids, 255 of them"):
    action_tokens.RareTokens((7, 7, *range(100, 354)))


def test_bin_values_match_decoding():
  tokenizer = ActionTokenizer(RT2, RARE)
  table = tokenizer.bin_values()
  assert np.isnan(table[0, 2:]).all() and np.isfinite(table[1:]).all()
  np.testing.assert_array_equal(table[0, :2], [1.0, 0.0])
  seventh = tokenizer.to_action(np.array([1] + [7] * 7))
  np.testing.assert_array_equal(table[1:, 7], seventh[1:])


def test_a_space_prints_its_units():
  text = str(RT1)
  assert "dx" in text and "-1 .. +1 m" in text and "one of 0, 1, 2" in text
