"""The vision-language model: image tokens, then text, through one decoder.

A row of the model is [image | prefix | suffix]. The prefix is padded on the
left and the suffix on the right, so the answer starts at the same column in
every example, and the hidden states that predict it are a plain slice.

Shapes: B examples, F images, H x W pixels, N image tokens of all F,
P prefix columns, S suffix columns, T columns of one `extend`, C cache slots,
D decoder width, V vocabulary, A chosen tokens.
"""

import dataclasses
from typing import ClassVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from rt2_jax import trees
from rt2_jax.errors import UserError
from rt2_jax.models import lora
from rt2_jax.models.gemma import Gemma, KVCache
from rt2_jax.models.lora_config import LoraConfig
from rt2_jax.models.siglip import Siglip
from rt2_jax.models.variants import VLMConfig


def attention_mask(mask_input: jax.Array, mask_ar: jax.Array) -> jax.Array:
  """Computes big_vision's prefix mask; nothing attends to padding.

  A 1 in `mask_ar` starts a new block: tokens see their own block and all
  earlier ones. With rows as queries and columns as keys:

      mask_ar 0 0 0 0     mask_ar 1 1 1 1     mask_ar 0 0 1 1
              x x x x             x . . .             x x . .
              x x x x             x x . .             x x . .
              x x x x             x x x .             x x x .
              x x x x             x x x x             x x x x
           bidirectional          causal          image and prefix
                                                  first, then answer

  Args:
    mask_input: bool[B, N], True on real tokens, False on padding.
    mask_ar: int32[B, N].

  Returns:
    bool[B, N, N], True where query (axis 1) may attend to key (axis 2).
  """
  block = jnp.cumsum(mask_ar, axis=1)
  sees = block[:, None, :] <= block[:, :, None]
  return sees & mask_input[:, None, :]


@flax.struct.dataclass
class DecodeState:
  """Where the decoding of a batch stands; a pytree, so a loop can carry it.

  Attributes:
    cache: keys and values of all columns so far.
    mask_input: bool[B, C], True on the slots that hold real tokens.
    position: int32[B], RoPE position of each example's next token.
  """

  cache: KVCache
  mask_input: jax.Array
  position: jax.Array


class VLM(nn.Module):
  """Training is the call; acting is `prefill`, then `extend` token by token.

  Both see the same masks and positions, so they give the same logits.
  """

  config: VLMConfig
  decoder: ClassVar[type[Gemma]] = Gemma

  def setup(self):
    self.img = Siglip(self.config.img, out_width=self.config.llm.width)
    self.llm = self.decoder(self.config.llm)

  def embed_images(self, images: jax.Array) -> jax.Array:
    """Encodes every image alone and lays their tokens out one after the other.

    Args:
      images: float32[B, F, H, W, 3] in [-1, 1].

    Returns:
      dtype[B, N, D].

    Raises:
      UserError: another number of images or another image size than
        configured.
    """
    if images.ndim != 5 or images.shape[1] != self.config.num_images:
      raise UserError(
        f"got images of shape {images.shape}, expected [B, F, H, W, 3] with "
        f"F = {self.config.num_images}: change the input, or the cameras and "
        "history of config.observation"
      )
    batch, count = images.shape[:2]
    tokens = self.img(images.reshape(batch * count, *images.shape[2:]))
    tokens = tokens.reshape(batch, -1, self.config.llm.width)
    return tokens.astype(self.config.llm.dtype)

  def __call__(
    self,
    images: jax.Array,
    prefix: jax.Array,
    mask_input: jax.Array,
    suffix: jax.Array,
    mask_image: jax.Array | None = None,
  ) -> jax.Array:
    """Computes the logits of a known answer (teacher forcing).

    Args:
      images: float32[B, F, H, W, 3] in [-1, 1].
      prefix: int32[B, P], padded on the left, one real token at least.
      mask_input: bool[B, P], True on the prefix's real tokens.
      suffix: int32[B, S], padded on the right. Padding needs no mask: it comes
        after everything that counts.
      mask_image: bool[B, F], False on images that do not exist: nobody attends
        to them, and they take no positions. None: all exist.

    Returns:
      float32[B, S, V]; `[:, i]` predicts `suffix[:, i]`.
    """
    prompt, real = self._prompt(images, prefix, mask_input, mask_image)
    x, real, mask = self._answered(prompt, real, suffix[:, :-1])
    hidden = self.llm(x, mask, _positions(real))
    logits = self.logits(hidden[:, prompt.shape[1] - 1 :])
    return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

  def name_patches(self, images: jax.Array) -> jax.Array:
    """Computes each image token's logits as if it were a text token.

    An encoder that learns to name its patches speaks the decoder's language
    before that reads it, which is what a contrastively pretrained SigLIP brings
    along; a small one learns it from far fewer pictures this way.

    Args:
      images: float32[B, F, H, W, 3] in [-1, 1].

    Returns:
      float32[B, N, V].
    """
    logits = self.logits(self.embed_images(images))
    return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

  def prefill(
    self,
    images: jax.Array,
    prefix: jax.Array,
    mask_input: jax.Array,
    mask_image: jax.Array | None = None,
    draft: jax.Array | None = None,
    *,
    answer_len: int,
    cache_dtype: str | None = None,
  ) -> tuple[jax.Array, DecodeState]:
    """Reads images and prefix, and leaves room for an answer.

    A drafted answer is read in the same pass, and is not kept in the state.

    Args:
      images: float32[B, F, H, W, 3] in [-1, 1].
      prefix: int32[B, P], padded on the left, one real token at least.
      mask_input: bool[B, P], True on the prefix's real tokens.
      mask_image: bool[B, F], as in the call.
      draft: int32[B, T], tokens that may come first in the answer; None: T = 0.
      answer_len: how many tokens `extend` may add.
      cache_dtype: of keys and values; None is the decoder's compute dtype, in
        which nothing is rounded.

    Returns:
      dtype[B, 1 + T, D], of which `[:, i]` predicts token i of the answer,
      given the draft's tokens before it, and the state behind the prefix.
    """
    if draft is None:
      draft = jnp.zeros((len(prefix), 0), jnp.int32)
    prompt, real = self._prompt(images, prefix, mask_input, mask_image)
    length = prompt.shape[1]
    slots = jnp.pad(real, ((0, 0), (0, answer_len)))
    cache = KVCache.empty(
      self.config.llm, *slots.shape, cache_dtype or self.config.llm.dtype
    )
    position = real.sum(axis=1)
    x, real, mask = self._answered(prompt, real, draft)
    unused = slots.shape[1] - real.shape[1]
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, unused)))
    hidden, cache = self.llm.extend(x, mask, _positions(real), cache)
    cache = cache.replace(length=jnp.int32(length))
    return hidden[:, length - 1 :], DecodeState(cache, slots, position)

  def extend(
    self, tokens: jax.Array, state: DecodeState
  ) -> tuple[jax.Array, DecodeState]:
    """Appends T tokens of the answer, each seeing those before it.

    Args:
      tokens: int32[B, T].
      state: from `prefill` or an earlier `extend`.

    Returns:
      dtype[B, T, D], of which `[:, i]` predicts what follows `tokens[:, i]`,
      and the state with T more tokens. NaN when the answer outgrows the room
      that `prefill` left.
    """
    steps = jnp.arange(tokens.shape[1])
    slots = jnp.arange(state.mask_input.shape[1])
    fresh = state.cache.length + steps
    real = state.mask_input | jnp.isin(slots, fresh)
    mask = real[:, None, :] & (slots <= fresh[:, None])
    positions = state.position[:, None] + steps
    x = self.llm.embed(tokens)
    hidden, cache = self.llm.extend(x, mask, positions, state.cache)
    return hidden, DecodeState(cache, real, state.position + tokens.shape[1])

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Maps dtype[..., D] to logits float32[..., V]."""
    return self.llm.logits(hidden)

  def logits_of(self, hidden: jax.Array, ids: jax.Array) -> jax.Array:
    """Maps dtype[..., D] to the logits float32[..., A] of int32[A] ids."""
    return self.llm.logits_of(hidden, ids)

  def _answered(self, prompt, real, answer):
    """[prompt | answer] embedded, its real tokens, and its attention mask."""
    x = jnp.concatenate([prompt, self.llm.embed(answer)], axis=1)
    causal = jnp.ones_like(answer)
    mask_ar = jnp.concatenate([jnp.zeros_like(real, int), causal], axis=1)
    real = jnp.concatenate([real, causal.astype(bool)], axis=1)
    return x, real, attention_mask(real, mask_ar)

  def _prompt(self, images, prefix, mask_input, mask_image):
    """Embeds [image | prefix], and masks its padding positions."""
    image_tokens = self.embed_images(images)
    x = jnp.concatenate([image_tokens, self.llm.embed(prefix)], axis=1)
    if mask_image is None:
      shown = jnp.ones(image_tokens.shape[:2], bool)
    else:
      shown = jnp.repeat(mask_image, self.config.img.num_tokens, axis=1)
    return x, jnp.concatenate([shown, mask_input.astype(bool)], axis=1)


def _positions(real: jax.Array) -> jax.Array:
  """Positions that count real tokens only, so padding moves nothing."""
  return jnp.cumsum(real, axis=1) - 1


def init_params(config: VLMConfig, rng: jax.Array) -> dict:
  """Draws float32 parameters to train from scratch.

  Pure: `jax.eval_shape` it for names and shapes alone, or `jax.jit` it with
  `out_shardings` to draw each shard where it will live.
  """
  size = config.img.image_size
  images = jnp.zeros((1, config.num_images, size, size, 3))
  token = jnp.zeros((1, 1), jnp.int32)
  mask_input = jnp.ones((1, 1), bool)
  model = VLM(config)
  params = model.init(rng, images, token, mask_input, token)["params"]
  _check_targets(config, params)
  return params


def _check_targets(config: VLMConfig, params: dict):
  """Raises a UserError for a LoRA target that matches no matrix."""
  parts = (config.img, config.llm)
  targets = {t for part in parts if part.lora.rank for t in part.lora.targets}
  everything = {".*"}
  if targets <= everything:
    return
  everywhere = LoraConfig(1, targets=tuple(everything))
  img, llm = (dataclasses.replace(part, lora=everywhere) for part in parts)
  known = abstract_params(dataclasses.replace(config, img=img, llm=llm))
  found, known = (lora.adapted(trees.flatten(p)) for p in (params, known))
  lora.check_targets(sorted(targets), found, known)


def abstract_params(config: VLMConfig) -> dict:
  """Names, shapes and types of the parameters as ShapeDtypeStructs."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
