"""Observations, their spec, and a robot's history of frames."""

import numpy as np
import pytest

from rt2_jax.action_spaces import LANGUAGE_TABLE
from rt2_jax.errors import UserError
from rt2_jax.observation import History, Observation, ObservationSpec


def test_spec_survives_its_dict():
  spec = ObservationSpec(
    ("primary", "wrist"), ("wrist",), 2, LANGUAGE_TABLE, ("wrist",)
  )
  assert ObservationSpec.from_dict(spec.to_dict()) == spec
  assert spec.num_images == 4
  plain = ObservationSpec()
  assert ObservationSpec.from_dict(plain.to_dict()) == plain


@pytest.mark.parametrize(
  "fields, got",
  [
    ({"cameras": ()}, r"got cameras \[\]"),
    ({"cameras": ("a", "a")}, r"got cameras \['a', 'a'\]"),
    ({"history": 0}, "history 0"),
    ({"uncropped": ("wrist",)}, r"\['wrist'\], expected some of \['primary'\]"),
  ],
)
def test_wrong_specs_are_refused(fields, got):
  with pytest.raises(UserError, match=got):
    ObservationSpec(**fields)


def _seen(number: int) -> Observation:
  frame = np.full((1, 2, 3, 3), number, np.uint8)
  return Observation({"primary": frame, "wrist": frame[:, :1]}, "go")


def test_history_repeats_the_first_frame_and_then_forgets():
  history = History(3)
  found = [history.add(_seen(n)) for n in (7, 8, 9, 10)]
  primary = [each.images["primary"][:, 0, 0, 0].tolist() for each in found]
  assert primary == [[7, 7, 7], [7, 7, 8], [7, 8, 9], [8, 9, 10]]
  assert found[-1].images["wrist"].shape == (3, 1, 3, 3)
  assert found[-1].instruction == "go"
