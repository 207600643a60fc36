"""Suites of tabletop trials, after RT-2's own.

Seen tasks look as in the robot's demonstrations. Unseen ones differ in their
objects, tables, or lighting and viewpoint (the paper's tables 2 and 4).
Emergent ones ask for what only web data can have taught: symbols, reasoning,
people (tables 3 and 5). A suite is one row of `SUITES`; a new one needs nothing
else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from rt2_jax.envs.tabletop import instructions, surfaces
from rt2_jax.envs.tabletop.pictures import Concept
from rt2_jax.envs.tabletop.seen import SEEN_CONCEPTS, SEEN_STYLE
from rt2_jax.errors import UserError
from rt2_jax.rollouts.trial import SuiteInfo

# Kinds that demonstrations show nothing of and emergent suites ask about.
_SYMBOLS = ("number", "heart", "shape", "sign", "flag")
_PEOPLE = ("person",)
# Kinds of which one thing can be called "the …".
_COUNTABLE = (
  *("fruit", "vegetable", "drink", "plant", "vehicle", "building"),
  *("animal", "bird", "sea animal", "insect", "musical instrument"),
)
_OTHER_STYLE = "twemoji"


@dataclasses.dataclass(frozen=True)
class Things:
  """Which things there can be.

  Attributes:
    seen: whether demonstrations show them.
    kinds: categories; all when empty.
    without: categories that are left out.
  """

  seen: bool
  kinds: tuple[str, ...] = ()
  without: tuple[str, ...] = ()

  def has(self, concept: Concept) -> bool:
    return (
      (concept.name in SEEN_CONCEPTS) == self.seen
      and (not self.kinds or concept.category in self.kinds)
      and concept.category not in self.without
    )


SEEN = Things(seen=True)
SEEN_KINDS_UNSEEN = Things(
  seen=False, without=(*_SYMBOLS, *_PEOPLE, "body")
)  # another fruit, another animal
UNSEEN = Things(seen=False, without=(*_SYMBOLS, *_PEOPLE))


@dataclasses.dataclass(frozen=True)
class Suite:
  """A row of the table of suites.

  Attributes:
    name: as flags and files call it.
    group: the rows that are averaged together.
    title: in the report.
    families: of tasks, each as often as the others.
    targets: what is acted on.
    references: what something is put on or next to.
    described: "target" or "reference": what the suite and its `words` are
      about; in families without a reference it is acted on itself. The words
      fit nothing else that lies there.
    words: keys of `descriptions.DESCRIBERS`, each as often as the others.
    distractors: least and most other things.
    style: of the pictures.
    backgrounds: names of tables.
    environments: names of lighting and viewpoint.
  """

  name: str
  group: str
  title: str
  families: tuple[str, ...] = instructions.FAMILIES
  targets: Things = SEEN
  references: Things = SEEN
  described: str = "target"
  words: tuple[str, ...] = ("name",)
  distractors: tuple[int, int] = (1, 2)
  style: str = SEEN_STYLE
  backgrounds: tuple[str, ...] = surfaces.SEEN_BACKGROUNDS
  environments: tuple[str, ...] = surfaces.SEEN_ENVIRONMENTS

  @property
  def info(self) -> SuiteInfo:
    """Describes the suite for tables. Each unseen one has its own topic."""
    kind = self.title.split(",")[0]
    topic = f"unseen {kind}" if self.group == "unseen" else self.group
    return SuiteInfo(self.title, self.group, topic)


def _symbols(name: str, title: str, *kinds: str) -> Suite:
  """Makes a suite whose target or reference is a symbol."""
  return Suite(
    f"symbols_{name}",
    "symbol understanding",
    title,
    families=("move_to", "pick", "place_on", "place_next_to"),
    references=Things(seen=False, kinds=kinds),
    described="reference",
    distractors=(2, 2),
  )


def _reasoning(
  name: str, title: str, *words: str, targets: Things = UNSEEN
) -> Suite:
  """Makes a suite whose target is described without its name."""
  return Suite(
    f"reasoning_{name}",
    "reasoning",
    title,
    families=("move_to", "pick", "place_on"),
    targets=targets,
    words=words,
    distractors=(2, 2),
  )


_ROWS = (
  Suite("seen", "seen tasks", "seen tasks"),
  Suite(
    "objects_easy",
    "unseen",
    "objects, easy",
    targets=SEEN_KINDS_UNSEEN,
    references=SEEN_KINDS_UNSEEN,
  ),
  Suite(
    "objects_hard",
    "unseen",
    "objects, hard",
    targets=UNSEEN,
    references=UNSEEN,
    distractors=(2, 2),
    style=_OTHER_STYLE,
  ),
  *(
    Suite(f"backgrounds_{level}", "unseen", f"backgrounds, {level}", **look)
    for level, look in (
      ("easy", {"backgrounds": surfaces.EASY_BACKGROUNDS}),
      ("hard", {"backgrounds": surfaces.HARD_BACKGROUNDS}),
    )
  ),
  *(
    Suite(f"environments_{level}", "unseen", f"environments, {level}", **look)
    for level, look in (
      ("easy", {"environments": surfaces.EASY_ENVIRONMENTS}),
      ("hard", {"environments": surfaces.HARD_ENVIRONMENTS}),
    )
  ),
  _symbols("numbers", "numbers", "number"),
  _symbols("shapes", "hearts and shapes", "heart", "shape"),
  _symbols("signs", "signs and flags", "sign", "flag"),
  dataclasses.replace(
    _symbols("sums", "arithmetic", "number"),
    name="reasoning_arithmetic",
    group="reasoning",
    words=("sum",),
  ),
  _reasoning("category", "category", "kind", targets=Things(False, _COUNTABLE)),
  _reasoning("use", "use", "use"),
  _reasoning("colour", "colour", "colour"),
  _reasoning("languages", "other languages", "de", "es", "fr"),
  *(
    dataclasses.replace(
      _symbols("", title, *_PEOPLE), name=name, group="people", words=(words,)
    )
    for name, title, words in (
      ("people_names", "by what they are", "name"),
      ("people_roles", "by what they do", "use"),
    )
  ),
)
SUITES = {suite.name: suite for suite in _ROWS}
# Rows of the page that average groups, as in the paper's table 5.
MEANS = {
  "emergent, mean of the three averages": (
    *("symbol understanding", "reasoning", "people"),
  )
}


def only(suites: Iterable[Suite], families: Sequence[str]) -> tuple[Suite, ...]:
  """Keeps the suites' tasks of these families; all when empty.

  Raises:
    UserError: an unknown family, or a suite that has none of them.
  """
  for family in families:
    instructions.check_family(family)
  return tuple(
    _only(suite, families) if families else suite for suite in suites
  )


def _only(suite: Suite, families: Sequence[str]) -> Suite:
  left = tuple(family for family in suite.families if family in families)
  if not left:
    raise UserError(
      f"got families {list(families)}, expected one of suite {suite.name!r}: "
      f"{', '.join(suite.families)}; add one or leave the suite out"
    )
  return dataclasses.replace(suite, families=left)
