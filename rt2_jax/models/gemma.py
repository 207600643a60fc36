"""Gemma 1 and 2: a decoder over embedded tokens, with an explicit cache.

Parameter names and shapes are those of the public PaliGemma checkpoints
(`llm/…`, layers stacked on axis 0); see big_vision `models/ppp/gemma.py` for
the format.

Shapes: B examples, T query positions, S key positions or cache slots, L layers,
D width, N heads, K key-value heads, G = N / K, H head size, V vocabulary.
`dtype` is the config's compute dtype; parameters are float32.
"""

from collections.abc import Callable
from typing import ClassVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from rt2_jax.models import layers
from rt2_jax.models.attention import attend, attention_weights, cap, rope
from rt2_jax.models.gated_mlp import GatedMlp
from rt2_jax.models.layers import INTERMEDIATES
from rt2_jax.models.lora_config import LoraConfig
from rt2_jax.models.remat import rematerialized, ungated
from rt2_jax.models.token_table import lookup, scores
from rt2_jax.models.variants import GemmaConfig
from rt2_jax.models.weight import multiply, weight

# How activations are laid out between blocks. `sharding.py` says what the names
# mean on a mesh; without rules for them the constraint does nothing.
_TOKENS = ("batch", "length", "embed")


@flax.struct.dataclass
class KVCache:
  """Keys and values of earlier positions; passed in and returned.

  Attributes:
    k: cache_dtype[L, B, S, K, H], already rotated.
    v: cache_dtype[L, B, S, K, H].
    length: int32[], slots written so far, the same for all examples.
  """

  k: jax.Array
  v: jax.Array
  length: jax.Array

  @classmethod
  def empty(
    cls, config: GemmaConfig, batch: int, size: int, dtype: str
  ) -> "KVCache":
    """Makes a cache of `size` slots for `batch` examples."""
    shape = (config.depth, batch, size, config.num_kv_heads, config.head_dim)
    return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))


class RMSNorm(nn.Module):
  """Divides by the root mean square, in float32; the factor is 1 + scale."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + 1e-6)
    return (y * (1 + scale)).astype(x.dtype)


class Einsum(nn.Module):
  """A weight `w`, drawn so that a product over `fan_in` keeps its scale."""

  equation: str
  shape: tuple[int, ...]
  fan_in: int
  lora: LoraConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.normal(self.fan_in**-0.5)
    w = weight(self, "w", self.shape, self.equation, init, self.lora, x.dtype)
    return ungated(multiply(x, w))


class Attention(nn.Module):
  """The projections around `attend`."""

  config: GemmaConfig

  def setup(self):
    c = self.config
    d, n, k, h = c.width, c.num_heads, c.num_kv_heads, c.head_dim

    def einsum(equation, shape, fan_in):
      return Einsum(equation, shape, fan_in, c.lora)

    if k == n:
      self.qkv_einsum = einsum("btd,cndh->cbtnh", (3, n, d, h), d)
    else:
      self.q_einsum = einsum("btd,ndh->btnh", (n, d, h), d)
      self.kv_einsum = einsum("btd,ckdh->cbtkh", (2, k, d, h), d)
    self.attn_vec_einsum = einsum("btnh,nhd->btd", (n, h, d), n * h)

  def project(
    self, x: jax.Array, positions: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dtype[B, T, D] -> q dtype[B, T, N, H], k and v dtype[B, T, K, H]."""
    if self.config.num_kv_heads == self.config.num_heads:
      q, k, v = self.qkv_einsum(x)
    else:
      q = self.q_einsum(x)
      k, v = self.kv_einsum(x)
    return rope(q, positions) * self.config.query_factor, rope(k, positions), v

  def read(
    self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """Attends and projects back: dtype[B, T, D]. Shapes as in `attend`."""
    softcap = self.config.attn_softcap
    if self.is_mutable_collection(INTERMEDIATES):
      weights = attention_weights(q, k, mask, softcap)
      self.sow(INTERMEDIATES, "attention_weights", weights)
    heads = attend(q, k, v, mask, softcap)
    return self.attn_vec_einsum(heads)


class Block(nn.Module):
  """One decoder layer."""

  config: GemmaConfig

  def setup(self):
    self.pre_attention_norm = RMSNorm()
    self.attn = Attention(self.config)
    self.pre_ffw_norm = RMSNorm()
    self.mlp = GatedMlp(self.config)
    if self.config.post_norms:
      self.post_attention_norm = RMSNorm()
      self.post_ffw_norm = RMSNorm()

  def __call__(
    self, x: jax.Array, mask: jax.Array, positions: jax.Array
  ) -> jax.Array:
    """Positions that attend to each other. Shapes as in `Gemma`."""
    x = nn.with_logical_constraint(x, _TOKENS)
    q, k, v = self.attn.project(self.pre_attention_norm(x), positions)
    return self._finish(x, self.attn.read(q, k, v, mask))

  def extend(
    self,
    x: jax.Array,
    mask: jax.Array,
    positions: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    start: jax.Array,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Positions that also attend to the past, and join it at slot `start`.

    Args:
      x: dtype[B, T, D].
      mask: bool[B, T, S].
      positions: int32[B, T].
      cache: keys and values of this layer, cache_dtype[B, S, K, H] each.
      start: int32[].
    """
    x = nn.with_logical_constraint(x, _TOKENS)
    q, *fresh = self.attn.project(self.pre_attention_norm(x), positions)
    cache = tuple(
      jax.lax.dynamic_update_slice_in_dim(
        past, new.astype(past.dtype), start, axis=1
      )
      for past, new in zip(cache, fresh, strict=True)
    )
    k, v = (past.astype(x.dtype) for past in cache)
    return self._finish(x, self.attn.read(q, k, v, mask)), cache

  def _finish(self, x, attended):
    """Adds both sublayers to the residual `x`."""
    if self.config.post_norms:
      attended = self.post_attention_norm(attended)
    x += attended
    y = self.mlp(self.pre_ffw_norm(x))
    if self.config.post_norms:
      y = self.post_ffw_norm(y)
    return x + y


class Embedder(nn.Module):
  """The token table, read on the way in and multiplied by on the way out."""

  config: GemmaConfig

  def setup(self):
    c = self.config
    init = nn.initializers.normal(c.width**-0.5)
    shape = (c.vocab_size, c.width)
    self.input_embedding = self.param("input_embedding", init, shape)

  def rows(self, ids: jax.Array) -> jax.Array:
    """int32[...] -> float32[..., D]; an id outside the table gives NaN."""
    return jnp.take(self.input_embedding, ids, axis=0, mode="fill")


class Gemma(nn.Module):
  """The decoder, one behaviour per method.

  Training is `embed`, call, `logits`; acting is `embed`, `extend`, `logits` or
  `logits_of`. All of them use the same parameters, and the same final softcap.
  """

  config: GemmaConfig
  # The token table's two products.
  lookup: ClassVar[Callable] = staticmethod(lookup)
  scores: ClassVar[Callable] = staticmethod(scores)

  def setup(self):
    self.embedder = Embedder(self.config)
    self.layers = Block(self.config)
    self.final_norm = RMSNorm()

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Embeds text; image tokens are not scaled so.

    Args:
      tokens: int32[B, T].

    Returns:
      dtype[B, T, D], table rows times sqrt(D).
    """
    table, dtype = self.embedder.input_embedding, self.config.dtype
    x = self.lookup(table, tokens, dtype)
    return x * jnp.asarray(self.config.width**0.5, x.dtype)

  def __call__(
    self, x: jax.Array, mask: jax.Array, positions: jax.Array
  ) -> jax.Array:
    """Computes all positions at once, for training.

    Args:
      x: dtype[B, T, D], embedded tokens.
      mask: bool[B, T, T], True where a query (axis 1) may attend to a key.
      positions: int32[B, T], for RoPE; only differences matter.

    Returns:
      dtype[B, T, D] after the final norm, ready for `logits`.
    """

    def layer(block, x):
      return block(x, mask, positions), None

    x, _ = self._run(rematerialized(layer, self.config.remat), x)
    return self.final_norm(x)

  def extend(
    self, x: jax.Array, mask: jax.Array, positions: jax.Array, cache: KVCache
  ) -> tuple[jax.Array, KVCache]:
    """Computes T more positions, given those in the cache, as prefill.

    Args:
      x: dtype[B, T, D], embedded tokens.
      mask: bool[B, T, S] over the slots of the cache. These positions are
        written to slots [cache.length, cache.length + T) before they attend.
      positions: int32[B, T], for RoPE.
      cache: what came before.

    Returns:
      dtype[B, T, D] after the final norm, and the cache with T more slots
      written. A cache without room for them gives NaN, because compiled code
      cannot raise and must not overwrite the past in silence.
    """

    def layer(block, x, past):
      return block.extend(x, mask, positions, past, cache.length)

    x, (k, v) = self._run(layer, x, (cache.k, cache.v))
    length = cache.length + x.shape[1]
    hidden = jnp.where(length <= k.shape[2], self.final_norm(x), jnp.nan)
    return hidden, KVCache(k, v, length)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Maps dtype[..., D] to logits float32[..., V], with the softcap."""
    return self._logits(hidden, self.embedder.input_embedding)

  def logits_of(self, hidden: jax.Array, ids: jax.Array) -> jax.Array:
    """Computes the logits of a few tokens, at the cost of a few.

    Args:
      hidden: dtype[..., D].
      ids: int32[A], rows of the table.

    Returns:
      float32[..., A], equal to `logits(hidden)[..., ids]`.
    """
    return self._logits(hidden, self.embedder.rows(ids))

  def _logits(self, hidden, rows):
    rows = rows.astype(hidden.dtype)
    logits = self.scores(hidden, rows)
    return cap(logits, self.config.final_softcap)

  def _run(self, layer, x, *per_layer):
    return layers.run(layer, self.layers, self.config.depth, x, *per_layer)
