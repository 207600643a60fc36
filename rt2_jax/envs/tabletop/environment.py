"""A tabletop robot that understands RT-2's eight numbers, for gymnasium.

  import rt2_jax.envs.tabletop
  env = gymnasium.make("rt2_jax/Tabletop-v0")  # or TabletopEnv()
  observation, info = env.reset(seed=0)
  observation, reward, terminated, truncated, info = env.step(action)

An episode is a pure function of its seed, its options and the actions. It ends
when an action says so (terminate = 1), or after `max_steps`.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from rt2_jax.action_spaces import TABLETOP
from rt2_jax.envs.tabletop import instructions, oracle, scene, surfaces, tasks
from rt2_jax.envs.tabletop.camera import Camera
from rt2_jax.envs.tabletop.instructions import Task
from rt2_jax.envs.tabletop.pictures import PATH, Pictures, load
from rt2_jax.errors import UserError, unknown_name

# How an episode ended, in `info["outcome"]`.
SUCCESS = "success"
WRONG_OBJECT = "wrong object"
WRONG_PLACE = "right object, wrong place"
FAILED = "right object, but failed"
NOTHING = "nothing touched"

_LETTERS = string.ascii_letters + string.digits + string.punctuation + " "
_ACCENTS = "".join(map(chr, range(0xA1, 0x180)))  # of European languages


@dataclasses.dataclass(frozen=True)
class TabletopConfig:
  """What episodes look like.

  Attributes:
    image_size: S, pixels a side.
    families: of tasks, each as often as the others.
    concepts: what may lie on the table; all there are when empty.
    styles: art styles of the pictures; one is drawn for each episode.
    distractors: least and most things beside those of the instruction.
    backgrounds: names of tables, see `surfaces`.
    environments: names of lighting and viewpoint, see `surfaces`.
    max_steps: an episode is cut off after as many.
  """

  image_size: int = 96
  families: tuple[str, ...] = instructions.FAMILIES
  concepts: tuple[str, ...] = ()
  styles: tuple[str, ...] = ("noto",)
  distractors: tuple[int, int] = (1, 2)
  backgrounds: tuple[str, ...] = surfaces.SEEN_BACKGROUNDS
  environments: tuple[str, ...] = surfaces.SEEN_ENVIRONMENTS
  max_steps: int = 60


@dataclasses.dataclass(frozen=True)
class EpisodeOptions:
  """What `reset(options=…)` may fix; the rest is drawn.

  Attributes:
    task: what is to be done.
    instruction: in which words; alone, it is understood as a task.
    distractors: names of the other things; half of them lie as mats in
      "place_on", none else.
    style: of the pictures.
    background: name of the table.
    environment: name of lighting and viewpoint.
  """

  task: Task | None = None
  instruction: str | None = None
  distractors: tuple[str, ...] | None = None
  style: str | None = None
  background: str | None = None
  environment: str | None = None


class TabletopEnv(gymnasium.Env):
  """Observations: `image` uint8[S, S, 3] and `instruction`; see `step`.

  gymnasium's `AsyncVectorEnv` reads texts from its shared memory only once
  (version 1.4): pass it `shared_memory=False`.
  """

  metadata = {"render_modes": ["rgb_array"], "render_fps": scene.CONTROL_HZ}  # noqa: RUF012

  def __init__(
    self,
    pictures: Pictures | None = None,
    config: TabletopConfig | None = None,
    render_mode: str = "rgb_array",
  ):
    """Builds the world.

    The camera opens at the first reset: a process that only asks for the
    spaces can be forked afterwards, a drawing context cannot.

    Args:
      pictures: of all objects; default: those of this repository.
      config: what episodes look like.
      render_mode: "rgb_array".

    Raises:
      UserError: an unknown name in `config`, too few concepts, or no pictures.
    """
    self.render_mode = render_mode
    pictures = pictures or load(PATH)
    self.pictures = pictures
    self.config = config = config or TabletopConfig()
    self.concepts = config.concepts or tuple(pictures.concepts)
    self._check(config)
    self.world = scene.World(config.image_size)
    self._camera: Camera | None = None
    self.task: Task | None = None
    self.observation_space = gymnasium.spaces.Dict(
      {
        "image": gymnasium.spaces.Box(
          0, 255, (config.image_size, config.image_size, 3), np.uint8
        ),
        "instruction": gymnasium.spaces.Text(
          300, min_length=1, charset=_LETTERS + _ACCENTS
        ),
      }
    )
    limits = [oracle.MAX_STEP] * 3 + [oracle.MAX_TURN] * 3
    self.action_space = gymnasium.spaces.Box(
      np.array([0.0, *(-x for x in limits), 0.0], np.float32),
      np.array([1.0, *limits, 1.0], np.float32),
    )

  def open_camera(self) -> Camera:
    """Opens the camera, once.

    Raises:
      UserError: no library that draws without a screen, or a process that
        cannot draw.
    """
    if self._camera is None:
      self._camera = Camera(self.world, self.config.image_size)
    return self._camera

  def _check(self, config: TabletopConfig) -> None:
    for family in config.families:
      instructions.check_family(family)
    for name in self.concepts:
      _ = self.pictures[name]
    for style in config.styles:
      self.pictures.picture(self.concepts[0], style)
    for name in config.backgrounds:
      surfaces.background(name)
    for name in config.environments:
      surfaces.lighting_and_viewpoint(name)
    most = config.distractors[1]
    if not 0 <= config.distractors[0] <= most <= 3:
      raise UserError(
        f"got distractors {config.distractors}, expected (least, most) of "
        "0..3: more do not fit on the table"
      )
    if len(self.concepts) < most + 2:
      raise UserError(
        f"got {len(self.concepts)} concepts, expected at least {most + 2}: a "
        f"target, a reference and {most} distractors; add some"
      )

  def reset(
    self,
    *,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Begins an episode.

    Args:
      seed: decides all that `options` leave open.
      options: fields of `EpisodeOptions`.

    Returns:
      The first observation, and its info as of `step`.

    Raises:
      UserError: an unknown option, object, family, style or surface, or an
        instruction that cannot be understood.
    """
    super().reset(seed=seed)
    fixed = self._read_options(options or {})
    rng, config = self.np_random, self.config
    # All is drawn, fixed or not, so that one option changes nothing else.
    drawn = self._draw_task(rng)
    self.task = task = fixed.task or drawn
    others = self._draw_distractors(rng, task)
    if fixed.distractors is not None:
      others = fixed.distractors
    words = instructions.instruct(task, rng)
    self.instruction = fixed.instruction or words
    style = _pick(rng, config.styles)
    background = _pick(rng, config.backgrounds)
    environment = _pick(rng, config.environments)
    self.style = fixed.style or style
    things = tasks.arrange(rng, task, *tasks.lay(task, others))
    order = rng.permutation(len(things))  # slots must not give the target away
    things = [things[i] for i in order]
    self.world.reset(
      things,
      tasks.out_of_the_way(rng, np.array([t.place for t in things])),
      yaw=float(rng.uniform(-0.3, 0.3)),
    )
    self.open_camera().dress(
      things,
      [self.pictures.picture(t.name, self.style) for t in things],
      surfaces.background(fixed.background or background),
      *surfaces.lighting_and_viewpoint(fixed.environment or environment),
    )
    self._steps, self._engaged, self._over = 0, None, False
    return self._observe(), self._info("")

  def _read_options(self, options: Mapping[str, Any]) -> EpisodeOptions:
    known = [field.name for field in dataclasses.fields(EpisodeOptions)]
    for name in options:
      if name not in known:
        raise unknown_name("option of reset", name, known)
    fixed = EpisodeOptions(**options)
    if fixed.instruction and fixed.task is None:
      task = instructions.parse(fixed.instruction, self.pictures.concepts)
      fixed = dataclasses.replace(fixed, task=task)
    if fixed.task is not None:
      instructions.check_family(fixed.task.family)
      for name in filter(None, (fixed.task.target, fixed.task.reference)):
        _ = self.pictures[name]
    return fixed

  def _draw_task(self, rng: np.random.Generator) -> Task:
    family = _pick(rng, self.config.families)
    target, reference = rng.choice(len(self.concepts), 2, replace=False)
    side = _pick(rng, tuple(instructions.SIDES))
    return Task(
      family,
      self.concepts[target],
      self.concepts[reference] if family.startswith("place") else "",
      side if family == "push" else "",
    )

  def _draw_distractors(
    self, rng: np.random.Generator, task: Task
  ) -> tuple[str, ...]:
    least, most = self.config.distractors
    count = int(rng.integers(least, most + 1))
    order = rng.permutation(len(self.concepts))
    names = (self.concepts[i] for i in order)
    others = [n for n in names if n not in (task.target, task.reference)]
    return tuple(others[:count])

  def step(
    self, action: np.ndarray
  ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
    """Moves the hand for 0.2 s, or ends the episode.

    Args:
      action: float[8] terminate, dx dy dz (m), droll dpitch dyaw (rad),
        gripper (1 = open), in the table's axes; clipped to `action_space`.

    Returns:
      observation, reward (1.0 at the end of a success), terminated (by the
      policy), truncated (step cap), and info: instruction, the task's fields,
      success (of the state now), steps, engaged (name of what the robot acted
      on first, or ""), and at the end outcome (`SUCCESS`, `WRONG_OBJECT`,
      `WRONG_PLACE` (put on another thing than asked for), `FAILED` or
      `NOTHING`).

    Raises:
      UserError: an action of another shape, or one that is not finite.
      RuntimeError: the episode is over.
    """
    action = np.asarray(action, np.float64)
    if action.shape != (len(TABLETOP),) or not np.isfinite(action).all():
      raise UserError(
        f"got action {action.tolist()}, expected {len(TABLETOP)} finite "
        f"numbers: {', '.join(TABLETOP.names)}"
      )
    if self.task is None or self._over:
      raise RuntimeError(
        "got step() outside of an episode, expected reset() before it"
      )
    low, high = self.action_space.low, self.action_space.high
    action = np.clip(action, low, high)
    terminated = bool(action[0] > 0.5)
    if not terminated:
      self.world.step(action[1:4], action[4:7], action[7])
    self._steps += 1
    if self._engaged is None and self.task.family != "move_to":
      self._engaged = tasks.engaged(self.world, self.task)
    truncated = not terminated and self._steps >= self.config.max_steps
    self._over = terminated or truncated
    if self._over and self._engaged is None:
      self._engaged = tasks.engaged(self.world, self.task)
    info = self._info(self._outcome() if self._over else "")
    reward = float(info["outcome"] == SUCCESS)
    return self._observe(), reward, terminated, truncated, info

  def _outcome(self) -> str:
    if tasks.is_success(self.world, self.task):
      return SUCCESS
    if self._engaged is None:
      return NOTHING
    if self._engaged != self.world.find(self.task.target):
      return WRONG_OBJECT
    return WRONG_PLACE if tasks.is_on_another(self.world, self.task) else FAILED

  def _observe(self) -> dict[str, Any]:
    return {"image": self.render(), "instruction": self.instruction}

  def _info(self, outcome: str) -> dict[str, Any]:
    acted_on = self._engaged
    name = "" if acted_on is None else self.world.things[acted_on].name
    return {
      "instruction": self.instruction,
      **dataclasses.asdict(self.task),
      "success": tasks.is_success(self.world, self.task),
      "steps": self._steps,
      "engaged": name,
      "outcome": outcome,
    }

  def render(self) -> np.ndarray:
    """Draws what the camera sees now, uint8[S, S, 3]."""
    return self.open_camera().render()

  def box(self, name: str) -> tuple[float, float, float, float]:
    """Bounds a thing in the image: y_min x_min y_max x_max, fractions."""
    return self.open_camera().box(self.world.find(name))

  def oracle_action(self) -> np.ndarray:
    """Asks the scripted expert for its action now, float32[8]."""
    return oracle.act(self.world, self.task)

  def close(self) -> None:
    if self._camera is not None:
      self._camera.close()


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
  return choices[int(rng.integers(len(choices)))]
