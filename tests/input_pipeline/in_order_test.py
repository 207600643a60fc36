"""Evaluation reads the rows that training reads, and each of them once."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from rt2_jax import augment, images
from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.input_pipeline import in_order
from rt2_jax.input_pipeline.examples import open_robot, open_web
from rt2_jax.input_pipeline.loader import Loader
from rt2_jax.input_pipeline.mixture import Mixture
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.observation import ONE_CAMERA
from rt2_jax.prompt import Prompt
from rt2_jax.sharding import make_mesh
from rt2_jax.train_state import Trainer
from tests import tiny_datasets, tiny_models
from tests.input_pipeline.web_test import write as write_web

RESOLUTION = 32
# Smaller and larger than robots' 64 x 64, on either axis and on both.
SIZES = [(20, 60), (64, 64), (60, 90), (96, 40), (30, 30), (128, 160)]


def picture(seed: int, height: int, width: int) -> Image.Image:
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (9, 9, 3), np.uint8)
  return Image.fromarray(coarse).resize((width, height))


def file_of(shown: Image.Image, kind: str) -> bytes:
  file = io.BytesIO()
  shown.save(file, kind)
  return file.getvalue()


@pytest.fixture
def prompt(tokenizer):
  return Prompt(tokenizer, prefix_length=24, suffix_length=9)


def robot(folder, prompt, episodes, max_skipped=0):
  tiny_datasets.write(folder, episodes)
  config = SourceConfig("bridge_dataset", str(folder))
  actions = ActionTokenizer(RT2, prompt.tokenizer.action_route("rare"))
  return open_robot(
    config, "train", actions, prompt, ONE_CAMERA, "", max_skipped
  )


def episodes(count=4):
  return [tiny_datasets.bridge_episode(seed) for seed in range(count)]


def test_steps_come_once_in_order(tmp_path, prompt):
  examples = robot(tmp_path, prompt, episodes())
  chunks = list(in_order.read_steps(examples, RESOLUTION, 8))
  assert [len(seen.instruction) for seen, _ in chunks] == [8, 8, 4]
  np.testing.assert_array_equal(
    np.concatenate([recorded for _, recorded in chunks])[:, 0],
    examples.source.index.action,
  )
  spread = list(in_order.read_steps(examples, RESOLUTION, 8, limit=5))
  np.testing.assert_array_equal(
    spread[0][1][:, 0], examples.source.index.action[::4]
  )


def test_a_damaged_step_is_left_out_with_its_action(tmp_path, prompt):
  damaged = episodes()
  damaged[1]["steps/observation/image_0"][2] = b"damaged"
  examples = robot(tmp_path, prompt, damaged, max_skipped=1)
  reading = examples, RESOLUTION, 8, None
  chunks = list(in_order.read_steps(*reading, max_skipped=1))
  kept = np.delete(examples.source.index.action, 7, 0)
  np.testing.assert_array_equal(
    np.concatenate([recorded for _, recorded in chunks])[:, 0], kept
  )
  with pytest.raises(ValueError, match="got 7 bytes that do not decode"):
    list(in_order.read_steps(*reading))


def test_every_road_shows_the_encoder_the_same_pixels(tmp_path, prompt):
  """Training, evaluation, acting in JAX and in PyTorch, of web pictures too."""
  shown = [picture(i, *size) for i, size in enumerate(SIZES)]
  records = [
    tiny_datasets.web_example(i) | {"image": [file_of(each, kind)]}
    for i, (each, kind) in enumerate(
      zip(shown, ["jpeg", "png"] * 3, strict=True)
    )
  ]
  pixels = [images.decode(record["image"][0]) for record in records]
  expected = np.stack([images.resize(each, RESOLUTION) for each in pixels])
  questions = open_web(
    write_web(tmp_path / "web", records), "train", prompt, ONE_CAMERA, "", 0
  )
  steps = robot(tmp_path / "robot", prompt, episodes())

  def levels(prepared):
    return (np.asarray(prepared) + 1) * 127.5

  # Training, on the robots' canvas.
  order = Mixture((len(steps), len(questions)), (1.0, 1.0), seed=0)
  batches = Loader([steps, questions], order, 12, np.arange(12), RESOLUTION)
  assert batches.canvas == (64, 64)
  (batch,) = batches.batches(0, 1)
  trainer = Trainer(
    model=tiny_models.config("gemma1", prompt.tokenizer.vocab_size),
    optimizer=None,
    augmentation=augment.Augmentation(),
    action_tokenizers=(None, None),
    seed=0,
    mesh=make_mesh({}, jax.devices()[:1]),
  )
  trained = levels(trainer.training_images(batch, 0))
  drawn = order.draw(0, np.arange(12), 12)
  for b in np.flatnonzero(drawn.source == 1):
    np.testing.assert_allclose(
      trained[b, 0], expected[drawn.example[b]], atol=1e-4
    )

  # Evaluation, on its own canvas.
  ((measured, size, _),) = in_order.read_questions(questions, RESOLUTION, 9)
  evaluated = levels(augment.prepare(measured, RESOLUTION, size))
  np.testing.assert_allclose(evaluated[:, 0], expected, atol=1e-4)

  # Acting, picture by picture.
  for each, wanted in zip(pixels, expected, strict=True):
    acted = levels(augment.prepare(each[None, None], RESOLUTION))
    np.testing.assert_allclose(acted[0, 0], wanted, atol=1e-4)
