"""The committed pictures, and what is known about them."""

import zipfile

import numpy as np
import pytest

from rt2_jax.envs.tabletop import pictures, seen
from rt2_jax.envs.tabletop.pictures import Pictures
from tests.conftest import ROOT

FILE = ROOT / "data/pictures.zip"


@pytest.fixture(scope="module")
def known() -> Pictures:
  return pictures.load(FILE)


def test_the_file_is_small_and_holds_what_is_promised(known):
  assert FILE.stat().st_size < 3_000_000
  assert len(known.concepts) >= 400
  assert known.styles == ("noto", "twemoji")


def test_every_picture_shows_something_of_its_own(known):
  for style in known.styles:
    shown = [known.picture(name, style) for name in known.concepts]
    assert all(p.shape == (64, 64, 4) and p.dtype == np.uint8 for p in shown)
    assert all((p[..., 3] > 128).mean() > 0.02 for p in shown)
    assert len({p.tobytes() for p in shown}) == len(shown)


def test_facts(known):
  assert known["fire extinguisher"].facts["does"] == "puts out fires"
  assert known["flag of Japan"].facts["capital"] == "Tokyo"
  assert known["apple"].facts["de"] == "Apfel"
  assert known["number 7"].facts["value"] == 7
  assert "fruit" in known["apple"].keywords
  kinds = [k for c in known.concepts.values() for k in c.facts]
  for kind, least in {
    "does": 300,
    "de": 400,
    "colour": 150,
    "capital": 45,
  }.items():
    assert kinds.count(kind) >= least


def test_what_something_does_and_capitals_belong_to_one_thing_only(known):
  for kind in ("does", "capital", "country", "value"):
    values = [c.facts[kind] for c in known.concepts.values() if kind in c.facts]
    assert len(set(values)) == len(values)


def test_the_seen_concepts_exist_and_are_no_symbols(known):
  kinds = {known[name].category for name in seen.SEEN_CONCEPTS}
  assert len(set(seen.SEEN_CONCEPTS)) == len(seen.SEEN_CONCEPTS) >= 40
  assert not kinds & {"number", "flag", "heart", "shape", "sign", "person"}
  assert seen.SEEN_STYLE in known.styles


def test_names_fit_into_instructions(known):
  assert all(name == " ".join(name.split()) for name in known.concepts)


def test_unknown_names(known):
  with pytest.raises(ValueError, match="'aple' for object.*did you mean"):
    known["aple"]
  with pytest.raises(ValueError, match="'oil' for art style.*noto, twemoji"):
    known.picture("apple", "oil")


def test_some_of_the_pictures(known):
  few = known.only(["dog", "apple"])
  assert list(few.concepts) == ["dog", "apple"]
  np.testing.assert_array_equal(
    few.picture("dog", "noto"), known.picture("dog", "noto")
  )
  assert known.only([]).concepts == known.concepts
  with pytest.raises(ValueError, match="'aple' for object.*did you mean"):
    known.only(["aple"])


@pytest.mark.parametrize("content", [None, b"no zip", "other"])
def test_a_file_that_holds_no_pictures(tmp_path, content):
  path = tmp_path / "pictures.zip"
  if content == "other":
    with zipfile.ZipFile(path, "w") as file:
      file.writestr("readme", "")
  elif content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match="cannot be read.*data.make_pictures"):
    Pictures.load(path)
