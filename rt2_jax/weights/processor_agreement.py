"""Compares an exported folder's own processor with our text and image path.

The processor is what AutoProcessor loads from the folder, without our code.

Shapes: Q questions, F frames, H x W pixels, R x R encoder pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from rt2_jax import augment
from rt2_jax.errors import UserError
from rt2_jax.models.variants import SiglipConfig
from rt2_jax.prompt import Prompt, question_ids
from rt2_jax.tokenizer import IMAGE_WORD

# Of every kind of robot, and with what a keyboard can do to a text.
INSTRUCTIONS = (
  *("pick apple", "move 7up can near green rice chip bag", "open top drawer"),
  *("put carrot on plate", "flip pot upright which is in sink", "stop"),
  "push the red star to the top left corner of the board",
  *("put the blue cube left of the llama", "  Wische  den Tisch ab ", "拿苹果"),
)
# Of every kind of data from the web.
QUESTIONS = (
  *("Answer in en: what colour is the cup?", "Answer in de: was ist das?"),
  *("Generate caption in en", "detect apple ; sponge", "segment the pot"),
  "point <loc0512><loc0096>",
  "Which of these is  heavier?\n 1) 🍎\n 2) a 0x41 <0x41>\t<seg012> ",
)
_DRAWN = 300  # texts of random tokens
_BATCH = 32  # texts in one call
# A resize rounds to whole levels after each of its two passes; PIL and
# torchvision may round the other way.
LEVEL = 2.0 / 255.0
UNTOUCHED = 1e-6


@dataclasses.dataclass(frozen=True)
class ProcessorAgreement:
  """The result.

  Attributes:
    texts: how many texts were read.
    different: one that got other ids, "" if none did.
    resized: largest difference of a picture that is resized, in grey levels.
    untouched: likewise, of one that has the encoder's size, in [-1, 1].
  """

  texts: int
  different: str
  resized: float
  untouched: float

  @property
  def holds(self) -> bool:
    """Tells whether the processor's outputs are our model's inputs."""
    return (
      not self.different and self.resized <= 2.0 and self.untouched <= UNTOUCHED
    )

  def __str__(self) -> str:
    ids = f"other ids for {self.different!r}" if self.different else "equal ids"
    return (
      f"its own processor    {ids}, {self.texts} texts\n"
      f"max |Δ| of a pixel   {self.untouched:.1e} of [-1, 1]; "
      f"{self.resized:.2f} grey levels where resized"
    )


def compare(
  processor: Any, prompt: Prompt, img: SiglipConfig, num_images: int
) -> ProcessorAgreement:
  """Reads robot and web prompts and pictures of many sizes on both sides.

  Args:
    processor: AutoProcessor of a folder.
    prompt: ours.
    img: the encoder that reads the pictures.
    num_images: F.
  """
  texts = list(_texts(prompt))
  resized, untouched = 0.0, 0.0
  prepare = jax.jit(augment.prepare, static_argnums=1)
  for image in _pictures(img.image_size):
    frames = np.stack([image] * num_images)[None]
    theirs = as_processed(processor, frames, ["stop"])["pixel_values"].numpy()
    ours = np.asarray(prepare(frames, img.image_size))[0]
    change = float(np.abs(theirs.transpose(0, 2, 3, 1) - ours).max())
    if image.shape[:2] == (img.image_size, img.image_size):
      untouched = max(untouched, change)
    else:
      resized = max(resized, change / LEVEL)
  different = _different(processor, prompt, texts, img, num_images)
  return ProcessorAgreement(len(texts), different, resized, untouched)


def _different(
  processor: Any,
  prompt: Prompt,
  texts: Sequence[str],
  img: SiglipConfig,
  num_images: int,
) -> str:
  """Finds a text that gets other ids than ours; "" if there is none."""
  side = img.image_size
  pictures = np.zeros((_BATCH, num_images, side, side, 3), np.uint8)
  image_ids = [prompt.tokenizer.vocab_size] * (num_images * img.num_tokens)
  for start in range(0, len(texts), _BATCH):
    batch = texts[start : start + _BATCH]
    given = as_processed(processor, pictures[: len(batch)], batch)
    ids, real = given["input_ids"].numpy(), given["attention_mask"].numpy()
    for text, row, mask in zip(batch, ids, real, strict=True):
      expected = image_ids + question_ids(prompt.tokenizer, text)
      if row[mask == 1].tolist() != expected:
        return text
  return ""


def as_processed(
  processor: Any, pictures: np.ndarray, questions: Sequence[str]
) -> dict[str, Any]:
  """Calls a processor on uint8[Q, F, H, W, 3] and Q questions, for PyTorch.

  A user's own call: PIL images, and `<image>` once for each before the text.
  """
  images = [[Image.fromarray(frame) for frame in row] for row in pictures]
  texts = [
    IMAGE_WORD * len(row) + text
    for row, text in zip(images, questions, strict=True)
  ]
  given = processor(
    images=images, text=texts, padding=True, return_tensors="pt"
  )
  return dict(given)


def _texts(prompt: Prompt) -> Iterator[str]:
  """Yields robot and web prompts, and texts of random tokens."""
  yield from map(prompt.robot_question, INSTRUCTIONS)
  yield from QUESTIONS
  random = np.random.default_rng(0)
  for _ in range(_DRAWN):
    ids = random.integers(
      0, prompt.tokenizer.vocab_size, random.integers(1, 20)
    )
    text = prompt.tokenizer.decode(ids)
    try:
      prompt.tokenizer.encode(text)
    except UserError:
      continue  # no text of ours
    yield text


def _pictures(side: int) -> Iterator[np.ndarray]:
  """Yields pictures uint8[H, W, 3] of the encoder's size and of others."""
  random = np.random.default_rng(0)
  for height, width in (
    *((side, side), (side, 2 * side + 1), (side + 5, side - 3)),
    *((2 * side + 3, 3 * side + 1), (side // 3 + 1, side // 2 + 3)),
    (256, 320),
  ):
    coarse = random.integers(0, 256, (height // 7 + 1, width // 5 + 1, 3))
    image = coarse.repeat(7, 0).repeat(5, 1)[:height, :width]
    noise = random.integers(-40, 41, image.shape)
    yield np.clip(image + noise, 0, 255).astype(np.uint8)
