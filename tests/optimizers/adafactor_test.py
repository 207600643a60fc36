"""Adafactor against PyTorch's, one parameter there for each matrix here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from einops import rearrange

from rt2_jax import optimizer, parameters, trees
from rt2_jax.models import variants
from rt2_jax.models.vlm import init_params

_BLOCK = "img/Transformer/encoderblock"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
# Name -> shape, and how PyTorch has it: l matrices or vectors.
PARAMETERS = {
  f"{_ATTENTION}/query/kernel": ((2, 20, 3, 8), "l d n h -> l (n h) d"),
  f"{_ATTENTION}/out/kernel": ((2, 3, 8, 20), "l n h d -> l d (n h)"),
  f"{_ATTENTION}/query/bias": ((2, 3, 8), "l n h -> l (n h)"),
  f"{_BLOCK}/MlpBlock_0/Dense_0/kernel": ((2, 20, 30), "l d h -> l h d"),
  f"{_BLOCK}/LayerNorm_0/scale": ((2, 20), "l d -> l d"),
  "img/embedding/kernel": ((4, 4, 3, 20), "a b c d -> 1 d (c a b)"),
  "img/pos_embedding": ((1, 9, 20), "l p d -> l p d"),
  "img/head/kernel": ((20, 16), "d e -> 1 e d"),
  "img/head/bias": ((16,), "d -> 1 d"),
  "llm/embedder/input_embedding": ((50, 16), "v d -> 1 v d"),
  "llm/layers/attn/q_einsum/w": ((2, 4, 16, 6), "l n d h -> l (n h) d"),
  "llm/layers/attn/kv_einsum/w": (
    (2, 2, 1, 16, 6),
    "l c k d h -> (l c) (k h) d",
  ),
  "llm/layers/attn/qkv_einsum/w": (
    (2, 3, 4, 16, 6),
    "l c n d h -> (l c) (n h) d",
  ),
  "llm/layers/attn/attn_vec_einsum/w": ((2, 4, 6, 16), "l n h d -> l d (n h)"),
  "llm/layers/mlp/gating_einsum": ((2, 2, 16, 40), "l g d h -> (l g) h d"),
  "llm/layers/mlp/linear": ((2, 40, 16), "l h d -> l d h"),
  "llm/final_norm/scale": ((16,), "d -> 1 d"),
}


def drawn(seed: int, spread: float) -> dict[str, np.ndarray]:
  """Layers and matrices of different sizes, so that none may be mixed up."""
  rng = np.random.default_rng(seed)
  return {
    name: np.float32(
      rng.normal(size=shape)
      * np.exp(spread * rng.normal(size=shape[:2] + (1,) * (len(shape) - 2)))
    )
    for name, (shape, _) in PARAMETERS.items()
  }


def as_torch(name: str, array: np.ndarray) -> list[torch.Tensor]:
  blocks = rearrange(array, PARAMETERS[name][1])
  return [torch.tensor(block) for block in blocks]


def test_updates_are_those_of_pytorch_matrix_by_matrix():
  config = optimizer.OptimizerConfig(
    1e-2, 0, name="adafactor", schedule="constant", clip_norm=0.0
  )
  ours = optimizer.make_optimizer(config, 100)
  params = trees.unflatten(drawn(0, 1.0))
  state = ours.init(params)
  theirs = {
    name: [torch.nn.Parameter(x) for x in as_torch(name, p)]
    for name, p in drawn(0, 1.0).items()
  }
  reference = transformers.Adafactor(
    [p for blocks in theirs.values() for p in blocks],
    lr=1e-2,
    relative_step=False,
    scale_parameter=True,
  )
  update = jax.jit(ours.update)
  for step in range(5):
    grads = drawn(step + 1, 1.0)
    # Rows without a gradient, as in the token table.
    grads["llm/embedder/input_embedding"][: 40 - step] = 0.0
    for name, blocks in theirs.items():
      for block, grad in zip(blocks, as_torch(name, grads[name]), strict=True):
        block.grad = grad
    reference.step()
    updates, state = update(trees.unflatten(grads), state, params)
    params = jax.tree.map(jnp.add, params, updates)
  for name, p in trees.flatten(params).items():
    got = np.stack(as_torch(name, np.asarray(p)))
    expected = np.stack([x.detach().numpy() for x in theirs[name]])
    moved = np.abs(expected - np.stack(as_torch(name, drawn(0, 1.0)[name])))
    np.testing.assert_allclose(
      got, expected, atol=2e-5 * moved.max(), rtol=2e-6, err_msg=name
    )


@pytest.mark.parametrize("llm", list(variants.DECODERS))
def test_every_parameter_of_every_decoder_has_its_matrices(llm):
  """All but biases and scales are factored, over all but what counts them."""
  config = variants.vlm("So400m/14", llm)
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  for name, x in trees.flatten(shapes).items():
    axes = parameters.row(name).matrix
    assert (axes is None) == name.endswith(("scale", "bias")), name
    if axes is not None:
      sizes = [x.shape[i] for i in axes.inputs + axes.outputs]
      width = config.img.width if name.startswith("img") else config.llm.width
      assert width in sizes, name


def test_a_parameter_of_another_name_is_refused():
  config = optimizer.OptimizerConfig(1e-3, 0, name="adafactor")
  with pytest.raises(ValueError, match="'llm/adapter/w', which no row"):
    optimizer.make_optimizer(config, 10).init(
      {"llm": {"adapter": {"w": jnp.ones((4, 4))}}}
    )
