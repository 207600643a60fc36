"""Muon and its AdamW against PyTorch's, over several steps."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange

from rt2_jax import optimizer, trees
from tests.optimizers.adafactor_test import as_torch, drawn

RATE, DECAY = 1e-2, 0.1


def test_matrices_and_the_rest_are_updated_as_in_pytorch():
  config = optimizer.OptimizerConfig(
    RATE,
    0,
    name="muon",
    schedule="constant",
    weight_decay=DECAY,
    clip_norm=0.0,
    b1=0.9,
    b2=0.98,
  )
  ours = optimizer.make_optimizer(config, 100)
  params = trees.unflatten(drawn(0, 0.0))
  state = ours.init(params)
  decays = trees.flatten(optimizer.decay_mask(params))
  by = trees.flatten(optimizer.muon_or_adamw(params))
  theirs, references = {}, []
  for name, p in drawn(0, 0.0).items():
    theirs[name] = [torch.nn.Parameter(x) for x in as_torch(name, p)]
    decay = DECAY if decays[name] else 0.0
    references.append(
      torch.optim.Muon(
        theirs[name],
        lr=RATE,
        weight_decay=decay,
        momentum=0.9,
        adjust_lr_fn="match_rms_adamw",
      )
      if by[name] == "muon"
      else torch.optim.AdamW(
        theirs[name], lr=RATE, weight_decay=decay, betas=(0.9, 0.98)
      )
    )
  update = jax.jit(ours.update)
  for step in range(4):
    grads = drawn(step + 1, 0.0)
    before = {name: np.asarray(p) for name, p in trees.flatten(params).items()}
    for name, blocks in theirs.items():
      for block, grad in zip(blocks, as_torch(name, grads[name]), strict=True):
        block.grad = grad
    for reference in references:
      reference.step()
    updates, state = update(trees.unflatten(grads), state, params)
    params = jax.tree.map(jnp.add, params, updates)
    for name, p in trees.flatten(params).items():
      start = np.stack(as_torch(name, before[name]))
      got = np.stack(as_torch(name, np.asarray(p))) - start
      expected = np.stack([x.detach().numpy() for x in theirs[name]]) - start
      error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
      # PyTorch iterates in bfloat16; AdamW is equal to float32's precision.
      assert error < (0.03 if by[name] == "muon" else 1e-4), (name, step, error)


def test_every_layer_turns_as_much_in_all_directions():
  """Orthogonal matrices, one for each layer and head-merged kernel."""
  name = "llm/layers/attn/q_einsum/w"
  config = optimizer.OptimizerConfig(
    RATE, 0, name="muon", schedule="constant", clip_norm=0.0
  )
  transform = optimizer.make_optimizer(config, 100)
  params = trees.unflatten({name: drawn(0, 0.0)[name]})
  updates, _ = transform.update(params, transform.init(params), params)
  turn = rearrange(trees.flatten(updates)[name], "l n d h -> l d (n h)") / RATE
  strengths = np.linalg.svd(turn, compute_uv=False) / (0.2 * 24**0.5)
  assert strengths.shape == (2, 16)
  # Five Newton-Schulz steps bring singular values near 1, not to it.
  assert 0.6 < strengths.min() < strengths.max() < 1.3
