"""A small tabletop world: coloured objects, a two-finger gripper, an oracle.

Nothing here knows how episodes are stored; `make_reach_episodes.py` does. A
`Scene` is what stays the same during an episode (objects, surface, task), a
`State` is what moves. `oracle` looks at both and answers with the next
`Action`, `step` applies it, `render` draws what the camera sees:

  scene, state = sample(rng)
  while not (action := oracle(scene, state)).terminate:
    image = render(scene, state)
    state = step(scene, state, action)

The oracle uses only what the picture shows: where things are, whether the
fingers are open, closed or around an object. So a policy that sees the image
and reads the instruction can learn it.

Units and frame: metres and radians; x points away from the camera, y to the
left, z up from the counter; yaw turns counter-clockwise seen from above, and
at yaw 0 the fingers open along y. The gripper's z is the height of its
fingertips, an object's z that of its bottom. A pose is float64[4], x y z yaw.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

# The task world.
LOW = np.array([0.46, -0.20, 0.0])  # corners of the workspace
HIGH = np.array([0.76, 0.20, 0.30])
RATE = 3.0  # Hz, RT-1's
MAX_STEP = 0.06  # m per step and axis at that rate
MAX_TURN = 0.4  # rad per step at that rate
GRASP_Z = 0.02  # fingertips when they grasp or release
HOVER_Z = 0.14  # fingertips when they travel, above every object
REACH = 0.03  # closing fingers catch an object this near to their middle
NEAR = 0.115  # distance between centres that counts as "near"
CLEARANCE = 0.110  # no two centres are nearer to each other than this
FAR = 0.200  # distance that makes moving one object near another worthwhile
TOLERANCE = 0.008  # the oracle's idea of "there"
TURN_TOLERANCE = 0.05
MAX_STEPS = 40  # at that rate; the longest task takes some 25

# What the camera sees.
HEIGHT, WIDTH = 256, 320
SUPERSAMPLE = 2  # draw at twice the size, then average
CAMERA = np.array([0.06, 0.0, 0.98])
LOOK_AT = np.array([0.675, 0.0, 0.02])
FOCAL = 515.0  # pixels of the final image
TO_LIGHT = np.array([-0.30, 0.42, 0.86])
COUNTER_END = 1.00  # x where the counter ends and the floor shows
OPEN_GAP = 0.100  # m between open fingers
ELBOW = np.array([1.00, -0.42, 0.50])  # the forearm comes from there

COLOURS = {
  "red": (204, 44, 40),
  "green": (58, 150, 62),
  "blue": (42, 92, 196),
  "yellow": (240, 196, 36),
  "purple": (134, 66, 160),
}


class Shape(NamedTuple):
  """A prism: its outline seen from above, and what a gripper must know.

  Attributes:
    outline: float64[N, 2], counter-clockwise, around the object's centre.
    height: in metres.
    width: between the fingers that hold it, in metres.
    period: turning it by this angle changes nothing for the gripper; 0 says
      that no angle does.
  """

  outline: np.ndarray
  height: float
  width: float
  period: float


def regular_outline(radii: list[float], first: float = 0.0) -> np.ndarray:
  """float64[N, 2]: corners at these distances and equal angles from `first`."""
  angles = first + np.arange(len(radii)) * 2 * math.pi / len(radii)
  corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  return corners * np.array(radii)[:, None]


# At yaw 0 the fingers, opening along y, meet two faces of the block, and a
# corner of the triangle or star with what lies across. Since the fingers are
# alike, half of these two shapes' own symmetry is enough.
FLAT, CORNER = math.pi / 4, math.pi / 2
SHAPES = {
  "can": Shape(regular_outline([0.031] * 28), 0.080, 0.062, 0.0),
  "block": Shape(regular_outline([0.042] * 4, FLAT), 0.052, 0.060, math.pi / 2),
  "triangle": Shape(
    regular_outline([0.046] * 3, CORNER), 0.040, 0.068, math.pi / 3
  ),
  "star": Shape(
    regular_outline([0.048, 0.021] * 5, CORNER), 0.032, 0.068, math.pi / 5
  ),
}


class Task(NamedTuple):
  """Pick object `target`, or move it near object `reference`."""

  target: int
  reference: int | None = None


class Scene(NamedTuple):
  """What stays in an episode.

  Attributes:
    objects: K objects' (colour, shape).
    task: what to do with them.
    counter: the empty counter.
    pace: part of a step at `RATE` that one step may go.
  """

  objects: tuple[tuple[str, str], ...]
  task: Task
  counter: Image.Image
  pace: float = 1.0

  def shape(self, index: int) -> Shape:
    return SHAPES[self.objects[index][1]]

  @property
  def instruction(self) -> str:
    names = [f"{colour} {shape}" for colour, shape in self.objects]
    if self.task.reference is None:
      return f"pick {names[self.task.target]}"
    return f"move {names[self.task.target]} near {names[self.task.reference]}"


class State(NamedTuple):
  """What moves: the gripper's pose, its fingers, and the objects' poses."""

  gripper: np.ndarray  # float64[4]
  closed: bool
  held: int | None  # index of the object between the fingers
  objects: np.ndarray  # float64[K, 4]


class Action(NamedTuple):
  """One step: motion, fingers (+1 close, -1 open, 0 as they are), the end."""

  move: np.ndarray = np.zeros(3, np.float32)  # float32[3], m
  turn: float = 0.0  # about z, rad
  grip: float = 0.0
  terminate: bool = False


# ------------------------------------------------------------------- the task


def sample(rng: np.random.Generator, rate: float = RATE) -> tuple[Scene, State]:
  """Draws a scene whose task is possible, with the gripper anywhere above.

  Args:
    rng: gives the scene.
    rate: steps per second, in Hz; the gripper is as fast at any rate.
  """
  task = Task(target=0, reference=1 if rng.random() < 0.5 else None)
  while True:
    count = int(rng.integers(3, 5))
    colours = rng.permutation(list(COLOURS))[:count].tolist()
    shapes = rng.choice(list(SHAPES), count).tolist()
    poses = np.zeros((count, 4))
    poses[:, :2] = rng.uniform(LOW[:2], HIGH[:2], (count, 2))
    poses[:, 3] = rng.uniform(-math.pi, math.pi, count)
    if is_possible(poses, task):
      break
  # Target and reference come first in the list; nothing in the picture does.
  counter = draw_counter(int(rng.integers(len(SURFACES))), rng)
  objects = tuple(zip(colours, shapes, strict=True))
  scene = Scene(objects, task, counter, RATE / rate)
  gripper = rng.uniform([*LOW[:2], 0.10, -0.5], [*HIGH[:2], 0.20, 0.5])
  closed = bool(rng.random() < 0.2)  # then the first thing to do is to open
  return scene, State(gripper, closed, None, poses)


def is_possible(poses: np.ndarray, task: Task) -> bool:
  """True if no two objects touch, now or once the target has been moved."""
  if closest_pair(poses[:, :2]) < CLEARANCE:
    return False
  if task.reference is None:
    return True
  target, reference = poses[[task.target, task.reference], :2]
  moved = poses[:, :2].copy()
  moved[task.target] = place_beside(target, reference)
  way = float(np.linalg.norm(target - reference))
  return way > FAR and closest_pair(moved) > CLEARANCE


def closest_pair(points: np.ndarray) -> float:
  """The smallest distance between two of the points float64[K, 2]."""
  distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
  return float(distances[np.triu_indices(len(points), k=1)].min())


def place_beside(point: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """The place nearest to `point` that is near the reference, float64[2]."""
  offset = point - reference
  distance = float(np.linalg.norm(offset))
  return reference + offset * min(1.0, NEAR / max(distance, 1e-9))


def oracle(scene: Scene, state: State) -> Action:
  """The scripted expert: the next action, from what the camera can see."""
  target = scene.task.target
  if state.held == target:
    if scene.task.reference is None:
      return rise(scene, state)
    return carry(scene, state)
  if scene.task.reference is not None and is_success(scene, state):
    return rise(scene, state)
  return reach(scene, state)


def reach(scene: Scene, state: State) -> Action:
  """Goes above the target, turns, descends and closes the fingers."""
  goal = state.objects[scene.task.target]
  period = scene.shape(scene.task.target).period
  turn = math.remainder(goal[3] - state.gripper[3], period) if period else 0.0
  grip = -1.0 if state.closed else 0.0
  aligned = is_there(goal[:2], state) and abs(turn) < TURN_TOLERANCE
  if not aligned or state.closed:
    return travel(scene, state, goal[:2], HOVER_Z, turn, grip)
  if state.gripper[2] > GRASP_Z + TOLERANCE:
    return travel(scene, state, goal[:2], GRASP_Z)
  return Action(grip=1.0)


def carry(scene: Scene, state: State) -> Action:
  """Brings the held target beside the reference and lets go of it."""
  reference = state.objects[scene.task.reference, :2]
  goal = place_beside(state.gripper[:2], reference)
  here, z = state.gripper[:2], state.gripper[2]
  if not is_there(goal, state):
    high_enough = z > HOVER_Z - TOLERANCE  # objects must not be bowled over
    return travel(scene, state, goal if high_enough else here, HOVER_Z)
  if z > GRASP_Z + TOLERANCE:
    return travel(scene, state, here, GRASP_Z)
  return Action(grip=-1.0)


def rise(scene: Scene, state: State) -> Action:
  """Goes straight up, with or without an object, then ends the episode."""
  if state.gripper[2] < HOVER_Z - TOLERANCE:
    return travel(scene, state, state.gripper[:2], HOVER_Z)
  return Action(terminate=True)


def is_there(goal: np.ndarray, state: State) -> bool:
  """True if the gripper is above (or at) the goal float64[2]."""
  return float(np.linalg.norm(goal - state.gripper[:2])) < TOLERANCE


def travel(
  scene: Scene,
  state: State,
  goal: np.ndarray,
  z: float,
  turn: float = 0.0,
  grip: float = 0.0,
) -> Action:
  """One step of a straight line to the goal float64[2], and one towards z."""
  max_step, max_turn = scene.pace * MAX_STEP, scene.pace * MAX_TURN
  way = goal - state.gripper[:2]
  way = way * min(1.0, max_step / max(np.abs(way).max(), 1e-9))
  climb = np.clip(z - state.gripper[2], -max_step, max_step)
  turn = float(np.float32(np.clip(turn, -max_turn, max_turn)))
  return Action(np.array([*way, climb], np.float32), turn, grip)


def step(scene: Scene, state: State, action: Action) -> State:
  """Moves the gripper, and whatever it holds; then moves the fingers."""
  gripper, objects = state.gripper.copy(), state.objects.copy()
  gripper[:3] = np.clip(gripper[:3] + action.move, LOW, HIGH)
  gripper[3] += action.turn
  closed, held = state.closed, state.held
  if held is not None:
    objects[held] += gripper - state.gripper
  if action.grip > 0.5 and not closed:
    closed, held = True, within_reach(scene, gripper, objects)
  elif action.grip < -0.5 and closed:
    if held is not None:
      objects[held, 2] = 0.0  # it drops onto the counter
    closed, held = False, None
  return State(gripper, closed, held, objects)


def within_reach(
  scene: Scene, gripper: np.ndarray, objects: np.ndarray
) -> int | None:
  """The object that fingers closing here would catch."""
  distances = np.linalg.norm(objects[:, :2] - gripper[:2], axis=1)
  nearest = int(distances.argmin())
  low_enough = gripper[2] < scene.shape(nearest).height
  return nearest if distances[nearest] < REACH and low_enough else None


def is_success(scene: Scene, state: State) -> bool:
  """True once the target is in the air, or stands near the reference."""
  target, reference = scene.task
  if reference is None:
    return state.held == target and state.gripper[2] > HOVER_Z - 2 * TOLERANCE
  offset = state.objects[target, :2] - state.objects[reference, :2]
  near = float(np.linalg.norm(offset)) < NEAR + 2 * TOLERANCE
  return near and state.held != target


# ---------------------------------------------------------------- the picture


class Prism(NamedTuple):
  """An upright solid to draw: outline float64[N, 2], from z bottom to top."""

  outline: np.ndarray
  bottom: float
  top: float
  colour: tuple[int, int, int]
  inset: float = 0.0  # size of a darker copy of the outline on top, 0 for none


def render(scene: Scene, state: State) -> np.ndarray:
  """uint8[256, 320, 3]: what the camera sees, drawn in some 4 ms."""
  objects = object_prisms(scene, state)
  gripper = gripper_prisms(scene, state)
  dark = ImageChops.lighter(
    shadow(objects, softness=0.8),
    shadow(gripper, softness=1.0 + 11.0 * float(state.gripper[2])),
  )
  image = scene.counter.copy()
  dark = dark.resize(image.size, Image.Resampling.BILINEAR)
  image.paste((18, 14, 12), mask=dark)
  draw = ImageDraw.Draw(image)
  for prism in sorted(objects + gripper, key=distance, reverse=True):
    draw_prism(draw, prism)
  draw_forearm(draw, state.gripper)
  return np.asarray(image.reduce(SUPERSAMPLE))


def object_prisms(scene: Scene, state: State) -> list[Prism]:
  """The solids of the K objects."""
  return [
    Prism(
      place(scene.shape(k).outline, pose),
      pose[2],
      pose[2] + scene.shape(k).height,
      COLOURS[scene.objects[k][0]],
      inset=0.78 if scene.objects[k][1] == "can" else 0.0,
    )
    for k, pose in enumerate(state.objects)
  ]


def gripper_prisms(scene: Scene, state: State) -> list[Prism]:
  """Two fingers, a palm and a wrist; the gap shows what the fingers do."""
  gap = OPEN_GAP
  if state.closed:
    gap = 0.0 if state.held is None else scene.shape(state.held).width
  z = state.gripper[2]
  wrist = place(regular_outline([0.026] * 20), state.gripper)

  def box(width: float, length: float, y: float = 0.0) -> np.ndarray:
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    return place(corners * [width, length] + [0, y], state.gripper)

  return [
    Prism(box(0.024, 0.013, gap / 2 + 0.0065), z, z + 0.085, (178, 182, 190)),
    Prism(box(0.024, 0.013, -gap / 2 - 0.0065), z, z + 0.085, (178, 182, 190)),
    Prism(box(0.040, 0.134), z + 0.085, z + 0.115, (74, 78, 86)),
    Prism(wrist, z + 0.115, z + 0.19, (206, 208, 212)),
  ]


def place(outline: np.ndarray, pose: np.ndarray) -> np.ndarray:
  """The outline float64[N, 2] turned and moved to a pose."""
  c, s = math.cos(pose[3]), math.sin(pose[3])
  return outline @ np.array([[c, s], [-s, c]]) + pose[:2]


@functools.cache
def camera_axes() -> np.ndarray:
  """float64[3, 3]: rows are the image's right and down and the view axis."""
  view = (LOOK_AT - CAMERA) / np.linalg.norm(LOOK_AT - CAMERA)
  right = np.array([0.0, -1.0, 0.0])
  return np.stack([right, np.cross(view, right), view])


def project(points: np.ndarray) -> np.ndarray:
  """Pixels float64[N, 2] of the supersampled image for float64[N, 3] points."""
  x, y, depth = camera_axes() @ (points - CAMERA).T
  pixels = np.stack([x, y], axis=1) * (FOCAL / depth)[:, None]
  centre = np.array([WIDTH, HEIGHT]) / 2
  return (pixels + centre) * SUPERSAMPLE


def distance(prism: Prism) -> float:
  """From the camera to the prism's middle, to draw the far ones first."""
  middle = [*prism.outline.mean(axis=0), (prism.bottom + prism.top) / 2]
  return float(np.linalg.norm(middle - CAMERA))


def at_height(outline: np.ndarray, z: float) -> np.ndarray:
  """float64[N, 3]: the outline float64[N, 2] lifted to height z."""
  return np.column_stack([outline, np.full(len(outline), z)])


def shade(colour: tuple[int, int, int], light: float) -> tuple[int, ...]:
  """The colour under that much light; 1 leaves it as it is."""
  return tuple(min(255, int(c * light)) for c in colour)


def draw_prism(draw: ImageDraw.ImageDraw, prism: Prism) -> None:
  """Draws the sides that face the camera, far ones first, then the top."""
  low = project(at_height(prism.outline, prism.bottom))
  high = project(at_height(prism.outline, prism.top))
  following = np.roll(prism.outline, -1, axis=0)
  edge = following - prism.outline
  normal = np.stack([edge[:, 1], -edge[:, 0]], axis=1)
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  from_camera = (prism.outline + following) / 2 - CAMERA[:2]
  lit = 0.52 + 0.42 * np.clip(normal @ TO_LIGHT[:2], -0.5, 1.0)
  for i in np.argsort(-np.linalg.norm(from_camera, axis=1)):
    if normal[i] @ from_camera[i] < 0:
      j = (i + 1) % len(low)
      side = np.stack([low[i], low[j], high[j], high[i]])
      draw.polygon(side.ravel().tolist(), fill=shade(prism.colour, lit[i]))
  top = high.ravel().tolist()
  draw.polygon(top, fill=prism.colour, outline=shade(prism.colour, 1.22))
  if prism.inset:
    middle = high.mean(axis=0)
    rim = middle + prism.inset * (high - middle)
    draw.polygon(rim.ravel().tolist(), fill=shade(prism.colour, 0.84))


def shadow(prisms: list[Prism], softness: float) -> Image.Image:
  """How much light the prisms keep from the counter, at half the size.

  A shadow is the outline swept from where the light past the bottom falls to
  where the light past the top falls. It gets blurred anyway, so half the size
  of the final image is enough.
  """
  scale = SUPERSAMPLE * 2
  mask = Image.new("L", (WIDTH // 2, HEIGHT // 2))
  draw = ImageDraw.Draw(mask)
  slant = -TO_LIGHT[:2] / TO_LIGHT[2]
  for prism in prisms:
    near = prism.outline + slant * prism.bottom
    far = prism.outline + slant * prism.top
    near = project(at_height(near, 0.0)) / scale
    far = project(at_height(far, 0.0)) / scale
    swept = [near, np.roll(near, -1, axis=0), np.roll(far, -1, axis=0), far]
    for polygon in [*np.stack(swept, axis=1), near, far]:
      draw.polygon(polygon.ravel().tolist(), fill=120)
  return mask.filter(ImageFilter.GaussianBlur(softness))


def draw_forearm(draw: ImageDraw.ImageDraw, gripper: np.ndarray) -> None:
  """Draws the tapering forearm, from the wrist's joint to the far elbow."""
  wrist = np.array([*gripper[:2], gripper[2] + 0.20])
  ends = project(np.stack([wrist, ELBOW]))
  along = ends[1] - ends[0]
  across = np.array([-along[1], along[0]]) / np.linalg.norm(along)
  for inner, light in ((1.0, 0.66), (0.8, 0.84), (0.5, 0.97), (0.2, 1.05)):
    radii = np.array([[17.0], [26.0]]) * SUPERSAMPLE / 2 * inner
    shift = -across * (1 - inner) * SUPERSAMPLE * 3
    left, right = ends + across * radii + shift, ends - across * radii + shift
    colour = shade((214, 216, 220), light)
    outline = [*left[0], *left[1], *right[1], *right[0]]
    draw.polygon(outline, fill=colour)
    x, y = ends[0] + shift
    r = radii[0, 0]
    draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)


# ---------------------------------------------------------------- the counter

# Each surface: colour, how strong its pattern is, and how many times finer the
# pattern is across the grain (y) than along it (x).
SURFACES = (
  ((188, 152, 112), 20.0, 14),  # oak
  ((112, 82, 62), 16.0, 14),  # walnut
  ((158, 160, 162), 9.0, 1),  # stone
  ((214, 210, 202), 5.0, 1),  # laminate
)
TEXELS = 768  # per side of a texture, of which a counter shows a window
TEXELS_PER_METRE = 460


def draw_counter(surface: int, rng: np.random.Generator) -> Image.Image:
  """The empty counter and the floor behind it, at the supersampled size."""
  x, y, light = ground()
  row, column = rng.integers(TEXELS - TEXELS_PER_METRE, size=2)
  rows = (np.clip(x, 0, 1) * (TEXELS_PER_METRE - 1)).astype(np.int32)
  columns = (np.clip(y + 0.5, 0, 1) * (TEXELS_PER_METRE - 1)).astype(np.int32)
  brightness = light * np.float32(rng.uniform(0.92, 1.06))
  pixels = surface_texture(surface)[rows + row, columns + column]
  pixels *= brightness[..., None]
  pixels[x > COUNTER_END - 0.012] *= 0.72  # the counter's edge
  pixels[x > COUNTER_END] = (46, 46, 50)
  image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
  return image.resize(
    (WIDTH * SUPERSAMPLE, HEIGHT * SUPERSAMPLE), Image.Resampling.BICUBIC
  )


@functools.cache
def ground() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """x and y where each pixel meets the counter, and how lit it is there.

  Returns three arrays float32[256, 320].
  """
  down = (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / FOCAL
  right = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
  down, right = np.meshgrid(down, right, indexing="ij")
  rays = np.stack([right, down, np.ones_like(down)], axis=-1) @ camera_axes()
  steps = -CAMERA[2] / rays[..., 2]
  x = CAMERA[0] + steps * rays[..., 0]
  y = CAMERA[1] + steps * rays[..., 1]
  light = 1.04 - 0.5 * ((x - 0.6) ** 2 + (y - 0.1) ** 2)
  return tuple(a.astype(np.float32) for a in (x, y, light))


@functools.cache
def surface_texture(surface: int) -> np.ndarray:
  """float32[768, 768, 3]: a procedural pattern, always the same."""
  colour, strength, stretch = SURFACES[surface]
  rng = np.random.default_rng(surface)
  pattern = np.zeros((TEXELS, TEXELS), np.float32)
  for octave, amplitude in ((12, 0.5), (24, 0.3), (48, 0.3), (192, 0.25)):
    across, along = octave, max(2, octave // stretch)
    noise = rng.standard_normal((along, across)).astype(np.float32)
    noise = Image.fromarray(noise).resize(
      (TEXELS, TEXELS), Image.Resampling.BICUBIC
    )
    pattern += amplitude * np.asarray(noise)
  return np.array(colour, np.float32) + strength * pattern[..., None]
