"""Makes recordings of a drawn arm, for docs/your_robot.md.

  python -m data.make_arm_recordings --output_dir=runs/your_robot/recordings

An arm with two joints reaches for a coloured disc on a table and grips it. Two
cameras see it, one from above and one on its hand. The recordings lie there as
`data/import_frames.py` reads them: what a person who records a robot with a few
lines of Python has.

Shapes: T steps of an episode.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw

from data.recordings import local_input
from launch import program
from rt2_jax.storage import output_folder, write

JOINTS = ("shoulder", "elbow")
NUM_STEPS = 16
COLOURS = {"red": "#d33", "green": "#3a3", "blue": "#33d", "yellow": "#dc3"}
_SIDE = 96  # pixels
_BASE = np.array([48.0, 90.0])
_LINKS = (34.0, 28.0)  # pixels
_REACH = np.array([0.6, 1.2])  # rad to either side: all in the picture
_WRIST = 24  # pixels around the hand that its camera sees


def make(output_dir: Path, num_episodes: int, seed: int = 0):
  """Writes episodes as folders of pictures and tables."""
  for number in range(num_episodes):
    rng = np.random.default_rng((seed, number))
    make_episode(output_dir / f"episode_{number:03d}", rng)


def make_episode(folder: Path, rng: np.random.Generator):
  """Writes one episode: reach for a disc, then grip it."""
  colour = str(rng.choice(list(COLOURS)))
  goal = rng.uniform(-_REACH, _REACH)
  start = rng.uniform(-_REACH, _REACH)
  time = np.linspace(0, 1, NUM_STEPS + 1)[:, None]
  way = (start + (goal - start) * time**2 * (3 - 2 * time)).round(4)
  grip = (np.arange(NUM_STEPS + 1) < NUM_STEPS - 3) * 1.0  # 1 is open
  state = np.column_stack([way, grip])
  discs = [(goal, colour)]
  others = [name for name in COLOURS if name != colour]
  discs.append((rng.uniform(-_REACH, _REACH), str(rng.choice(others))))
  for camera in ("table", "hand"):
    (folder / camera).mkdir(parents=True, exist_ok=True)
  for t in range(NUM_STEPS):
    picture = draw(state[t], discs)
    picture.save(folder / f"table/{t:04d}.png")
    left, top = (hand(state[t]) - _WRIST).round().astype(int)
    box = (left, top, left + 2 * _WRIST, top + 2 * _WRIST)
    picture.crop(box).save(folder / f"hand/{t:04d}.png")
  # An action is where the arm should be at the next step.
  write_table(folder / "action.csv", state[1:])
  write_table(folder / "state.csv", state[:-1])
  write(folder / "instruction.txt", f"grip the {colour} disc\n")


def hand(joints: np.ndarray) -> np.ndarray:
  """Finds the hand in the picture, float[2], for joints float[2 or more]."""
  angles = np.cumsum(joints[:2])
  steps = np.stack([np.sin(angles), -np.cos(angles)], -1)
  return _BASE + _LINKS @ steps


def draw(
  joints: np.ndarray, discs: list[tuple[np.ndarray, str]]
) -> Image.Image:
  """Draws the table from above, with the arm over the discs."""
  picture = Image.new("RGB", (_SIDE, _SIDE), "#efe6d8")
  pen = ImageDraw.Draw(picture)
  for place, colour in discs:
    x, y = hand(place)
    pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=COLOURS[colour])
  shoulder = np.array([np.sin(joints[0]), -np.cos(joints[0])])
  elbow, end = _BASE + _LINKS[0] * shoulder, hand(joints)
  points = [tuple(point) for point in (_BASE, elbow, end)]
  pen.line(points, fill="#555", width=6, joint="curve")
  radius = 5 if joints[2] > 0.5 else 3
  pen.ellipse((*(end - radius), *(end + radius)), outline="#222", width=2)
  return picture


def write_table(path: Path, rows: np.ndarray):
  """Writes joints and gripper as CSV with a line of names."""
  with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow([*JOINTS, "gripper"])
    writer.writerows(rows.tolist())


@program.main
def main():
  args = flags.FLAGS
  folder = output_folder(
    local_input(args.output_dir, "--output_dir"), "--output_dir"
  )
  make(folder, args.episodes, args.seed)
  print(f"{folder}: {args.episodes} episodes of {NUM_STEPS} steps")


if __name__ == "__main__":
  flags.DEFINE_string("output_dir", None, "Where to write", required=True)
  flags.DEFINE_integer("episodes", 50, "How many", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Gives other episodes", lower_bound=0)
  app.run(main)
