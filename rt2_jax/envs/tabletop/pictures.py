"""Reads the concepts: their pictures and facts.

One file holds everything: `concepts.json` and, for each art style, an atlas of
square pictures in the order of the concepts. `data/make_pictures.py` makes it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from rt2_jax import shipped
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.storage import locate

PATH = shipped.FOLDER / "data/pictures.zip"
SIDE = 64  # pixels of a picture
ATLAS_COLUMNS = 32


@dataclasses.dataclass(frozen=True)
class Concept:
  """One thing that pictures show.

  Attributes:
    name: as instructions call it, e.g. "fire extinguisher".
    category: what kind of thing it is, e.g. "household".
    keywords: words that go with it.
    facts: by kind, e.g. {"colour": "red", "does": "puts out fires"}; see
      data/picture_facts.toml.
  """

  name: str
  category: str
  keywords: tuple[str, ...]
  facts: Mapping[str, str | int]


class Pictures:
  """Concepts by name, and their pictures in each art style."""

  def __init__(
    self,
    concepts: Mapping[str, Concept],
    atlases: Mapping[str, np.ndarray],
  ):
    """Keeps concepts and their pictures.

    Args:
      concepts: by name.
      atlases: by art style, uint8[rows * 64, 32 * 64, 4] red, green, blue and
        opacity, in the order of the concepts.
    """
    self.concepts = dict(concepts)
    self._atlases = dict(atlases)
    self._places = {name: i for i, name in enumerate(self.concepts)}

  @classmethod
  def load(cls, path: str | os.PathLike) -> Pictures:
    """Reads a file that data/make_pictures.py wrote.

    Raises:
      UserError: no such file, or not such a file.
    """
    try:
      content = locate(path, "a file of pictures").read_bytes()
      with zipfile.ZipFile(io.BytesIO(content)) as file:
        index = json.loads(file.read("concepts.json"))
        atlases = {
          style: _read_atlas(file.read(f"{style}.webp"))
          for style in index["styles"]
        }
    except (OSError, KeyError, zipfile.BadZipFile) as error:
      raise UserError(
        f"got pictures {str(path)!r}, which cannot be read ({error}); expected "
        "data/pictures.zip, or what `python -m data.make_pictures` writes"
      ) from error
    concepts = {
      c["name"]: Concept(
        c["name"], c["category"], tuple(c["keywords"]), c["facts"]
      )
      for c in index["concepts"]
    }
    return cls(concepts, atlases)

  @property
  def styles(self) -> tuple[str, ...]:
    return tuple(self._atlases)

  @property
  def categories(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c.category for c in self.concepts.values()))

  def __getitem__(self, name: str) -> Concept:
    """Raises UserError for an unknown name."""
    if name not in self.concepts:
      raise unknown_name("object", name, self.concepts)
    return self.concepts[name]

  def only(self, names: Sequence[str]) -> Pictures:
    """Keeps these concepts alone, or all of them where none is named.

    Raises:
      UserError: an unknown name.
    """
    chosen = copy.copy(self)
    if names:
      chosen.concepts = {name: self[name] for name in names}
    return chosen

  def picture(self, name: str, style: str) -> np.ndarray:
    """Returns uint8[64, 64, 4]: red, green, blue and opacity.

    Raises:
      UserError: an unknown object or art style.
    """
    self[name]
    if style not in self._atlases:
      raise unknown_name("art style", style, self._atlases)
    row, column = divmod(self._places[name], ATLAS_COLUMNS)
    return self._atlases[style][
      row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE
    ]


def _read_atlas(data: bytes) -> np.ndarray:
  """Reads an atlas, uint8[rows * 64, 32 * 64, 4]."""
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


@functools.cache
def load(path: str | os.PathLike) -> Pictures:
  """Calls `Pictures.load`, once for each path in a process."""
  return Pictures.load(path)
