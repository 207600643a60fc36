"""Records a scripted expert on the simulated tabletop, as RLDS.

  python -m data.make_tabletop --output_dir=DIR --train_episodes=2000 \\
    --val_episodes=100 --image_size=96

writes `DIR/tabletop/1.0.0/` with the splits `train` and `val`, through TFDS's
own writer and on all CPUs. It ends by saying how often the expert solved each
family of tasks; an episode that it does not solve is drawn again. By default
the robot sees few things in one art style (rt2_jax/envs/tabletop/seen.py).

Now and then the hand is led astray (--wander) while the expert's own action is
recorded, so that a policy sees how to come back. Every episode is a pure
function of the settings, its split and its number; pixels also depend on the
graphics library. Running the program again with the same settings changes
nothing. It needs no network.
"""

import collections
import concurrent.futures
import functools
import io
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# TensorFlow reads this when it is imported, and is quiet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import app, flags
from PIL import Image

from data.tfds_writer import (
  SPLITS,
  EpisodesBuilder,
  check_settings,
  write_quietly,
)
from launch import program
from rt2_jax import local_copies, storage
from rt2_jax.envs.tabletop import pictures, seen
from rt2_jax.envs.tabletop.environment import (
  SUCCESS,
  TabletopConfig,
  TabletopEnv,
)
from rt2_jax.envs.tabletop.instructions import FAMILIES
from rt2_jax.errors import UserError

SCENE_VERSION = 3  # raise it whenever the same seed would give other episodes
PICTURES = Path(__file__).with_name("pictures.zip")
JPEG_QUALITY = 95
CHUNK = 4  # episodes that a process records at a time
ASTRAY = 0.03  # m, and 5 times as many rad
FUMBLE = 0.3  # share of those steps that also open or close the hand
_ATTEMPTS = 20

Settings = Mapping[str, Any]


def vector(size: int) -> tfds.features.Tensor:
  """Describes `size` numbers as a feature."""
  return tfds.features.Tensor(shape=(size,), dtype=np.float32)


def features(image_size: int) -> tfds.features.FeaturesDict:
  """Describes an episode.

  `action` is RT-2's: terminate, dx dy dz (m), droll dpitch dyaw (rad), gripper
  (1 = open). `state` is the hand's x y z (m), roll pitch yaw (rad) and gripper.
  Boxes are y_min x_min y_max x_max as parts of the image, 0 where there is no
  reference.
  """
  image = tfds.features.Image(
    shape=(image_size, image_size, 3), dtype=np.uint8, encoding_format="jpeg"
  )
  text = tfds.features.Text()
  return tfds.features.FeaturesDict(
    {
      "steps": tfds.features.Dataset(
        {
          "action": vector(8),
          "is_first": np.bool_,
          "is_last": np.bool_,
          "is_terminal": np.bool_,
          "language_instruction": text,
          "observation": {"image": image, "state": vector(7)},
          "reference_box": vector(4),
          "reward": tfds.features.Scalar(dtype=np.float32),
          "target_box": vector(4),
        }
      ),
      "episode_metadata": {
        name: text
        for name in ("family", "target", "reference", "side", "style")
      },
    }
  )


@functools.cache
def environment(
  image_size: int,
  families: tuple[str, ...],
  concepts: tuple[str, ...],
  style: str,
  distractors: tuple[int, int],
) -> TabletopEnv:
  """Makes the environment, once per process: compiling the scene is slow."""
  config = TabletopConfig(
    image_size=image_size,
    families=families,
    concepts=concepts,
    styles=(style,),
    distractors=distractors,
  )
  return TabletopEnv(pictures.load(PICTURES), config)


def episode(
  settings: Settings, split: str, number: int
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
  """Records the expert.

  Args:
    settings: those of `make`.
    split: one of `SPLITS`.
    number: of the episode in the split.

  Returns:
    The episode, and (family, outcome) of each attempt; the last succeeded.

  Raises:
    UserError: the expert fails again and again.
  """
  env = environment(
    settings["image_size"],
    tuple(settings["families"]),
    tuple(settings["concepts"]),
    settings["style"],
    tuple(settings["distractors"]),
  )
  outcomes = []
  for attempt in range(_ATTEMPTS):
    key = (settings["seed"], SPLITS.index(split), number, attempt)
    rng = np.random.default_rng(key)
    steps, info = record(env, rng, settings["wander"])
    outcomes.append((info["family"], info["outcome"]))
    if info["outcome"] == SUCCESS:
      names = ("family", "target", "reference", "side")
      metadata = {name: info[name] for name in names} | {"style": env.style}
      return {"steps": steps, "episode_metadata": metadata}, outcomes
  raise UserError(
    f"got {_ATTEMPTS} failures of the expert in {split} episode {number} "
    f"({outcomes}), expected a success; lower --wander"
  )


def record(
  env: TabletopEnv, rng: np.random.Generator, wander: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Records one attempt: its steps, and the environment's last info."""
  observation, info = env.reset(seed=int(rng.integers(2**31)))
  steps, over = [], False
  while not over:
    action = env.oracle_action()
    steps.append(
      {
        "action": action,
        "is_first": not steps,
        "language_instruction": observation["instruction"],
        "observation": {
          "image": jpeg(observation["image"]),
          "state": env.world.state(),
        },
        "reference_box": np.float32(
          env.box(info["reference"]) if info["reference"] else [0] * 4
        ),
        "target_box": np.float32(env.box(info["target"])),
      }
    )
    done = lead_astray(action, rng) if rng.random() < wander else action
    observation, reward, terminated, truncated, info = env.step(done)
    over = terminated or truncated
    steps[-1] |= {
      "is_last": over,
      "is_terminal": terminated,
      "reward": np.float32(reward),
    }
  return steps, info


def lead_astray(action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Replaces the expert's motion by another; terminate stays as it is.

  A hand that closed on nothing, or let go, is among what a policy must know.
  """
  if action[0] > 0.5:
    return action
  spread = ASTRAY * np.array([1, 1, 1, 5, 5, 5])
  motion = rng.uniform(-spread, spread)
  fumbles = rng.random() < FUMBLE
  gripper = 1.0 - action[7] if fumbles else action[7]
  return np.array([0.0, *motion, gripper], np.float32)


def jpeg(image: np.ndarray) -> bytes:
  """Encodes uint8[S, S, 3] without chroma subsampling: pictures are small."""
  data = io.BytesIO()
  Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)
  return data.getvalue()


# Episodes come from other processes, since drawing and TensorFlow do not go
# together: see envs/tabletop/camera.py.
class Tabletop(EpisodesBuilder, skip_registration=True):
  """Writes the episodes that the processes of `pool` record."""

  VERSION = tfds.core.Version("1.0.0")
  description = (
    "A scripted expert on a simulated tabletop, with pictures of Noto Emoji "
    "(Apache-2.0) or Twemoji (CC BY 4.0)"
  )
  license = "Apache-2.0; Twemoji's pictures CC BY 4.0"

  def __init__(self, settings: Settings, data_dir: Path, pool: Any):
    self.outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    self._pool = pool
    super().__init__(settings, data_dir)

  def features(self) -> tfds.features.FeaturesDict:
    return features(self.settings["image_size"])

  def episodes(self, split: str) -> Iterator[dict[str, Any]]:
    numbers = range(self.settings[f"{split}_episodes"])
    recorded = self._pool.map(
      functools.partial(episode, self.settings, split), numbers, chunksize=CHUNK
    )
    bar = tqdm.tqdm(recorded, split, len(numbers), unit=" episodes")
    for example, outcomes in bar:
      self.outcomes.update(outcomes)
      yield example


def make(
  output_dir: str | os.PathLike, num_workers: int | None, **settings
) -> storage.Path:
  """Writes the episodes unless they are there already; returns their folder.

  Args:
    output_dir: gets `tabletop/1.0.0/`.
    num_workers: processes; None for one on each CPU.
    **settings: train_episodes, val_episodes, seed, image_size, families,
      concepts, style, distractors, wander; see the flags.

  Raises:
    UserError: an unknown name in the settings.
    UserError: the folder holds other data.
  """
  settings = {"scene_version": SCENE_VERSION} | settings
  output_dir = storage.locate(output_dir, "--output_dir")
  folder = output_dir / Tabletop.name / str(Tabletop.VERSION)
  if folder.exists():
    check_settings(folder, settings)
    print(f"{folder} holds these episodes already")
    return folder
  with concurrent.futures.ProcessPoolExecutor(
    num_workers or os.cpu_count(),
    mp_context=multiprocessing.get_context("spawn"),
  ) as pool:
    # One clear error, before TFDS begins a folder.
    pool.submit(episode, settings, "train", 0).result()
    with local_copies.made_for(output_dir) as local:
      builder = Tabletop(settings, local, pool)
      write_quietly(builder)
  print(report(builder.outcomes))
  print(f"{folder}: {builder.info.dataset_size / 1e6:.1f} MB")
  return folder


def report(outcomes: Mapping[tuple[str, str], int]) -> str:
  """Formats how often the expert solved each family, as lines of text."""
  lines = []
  for family in FAMILIES:
    n = sum(count for (name, _), count in outcomes.items() if name == family)
    if n:
      solved = outcomes[family, SUCCESS]
      lines.append(f"expert: {family:<14} {solved}/{n} = {solved / n:.1%}")
  return "\n".join(lines)


@program.main
def main():
  args = flags.FLAGS
  make(
    args.output_dir,
    args.num_workers,
    train_episodes=args.train_episodes,
    val_episodes=args.val_episodes,
    seed=args.seed,
    image_size=args.image_size,
    families=list(args.families),
    concepts=list(args.concepts),
    style=args.style,
    distractors=[args.min_distractors, args.max_distractors],
    wander=args.wander,
  )


if __name__ == "__main__":
  flags.DEFINE_string("output_dir", None, "Where to write", required=True)
  flags.DEFINE_integer("train_episodes", 2000, "How many", lower_bound=1)
  flags.DEFINE_integer("val_episodes", 100, "How many", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Gives other episodes", lower_bound=0)
  flags.DEFINE_integer("image_size", 96, "Pixels a side", 16, 1024)
  flags.DEFINE_list("families", [*FAMILIES], "Of tasks")
  flags.DEFINE_list("concepts", [*seen.SEEN_CONCEPTS], "What lies there")
  flags.DEFINE_string("style", seen.SEEN_STYLE, "Of the pictures")
  flags.DEFINE_integer("min_distractors", 1, "Things beside the task's", 0, 3)
  flags.DEFINE_integer("max_distractors", 2, "Likewise", 0, 3)
  flags.DEFINE_float(
    "wander", 0.15, "Share of steps that lead the hand astray", 0.0, 0.5
  )
  flags.DEFINE_integer("num_workers", None, "Processes; default: all CPUs", 1)
  app.run(main)
