"""Tiny models of every kind of decoder, random in every parameter."""

import dataclasses

import jax
import numpy as np
import torch

from rt2_jax import trees
from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.checkpoint_meta import FORMAT
from rt2_jax.models.variants import GemmaConfig, SiglipConfig, VLMConfig
from rt2_jax.observation import Observation, ObservationSpec
from rt2_jax.prompt import ROBOT_TEMPLATE
from rt2_jax.weights.pretrained import EMBEDDING, parameter_shapes

# The tests' processes share the cores already.
torch.set_num_threads(1)

_IMG = SiglipConfig(32, 2, 64, 4, patch_size=8, image_size=32)
_CAPS = {
  "attn_softcap": 50.0,
  "final_softcap": 30.0,
  "post_norms": True,
  "family": "gemma2",
}
# No head size here is width / heads, so that a wrong reshape shows.
DECODERS = {
  "gemma1": GemmaConfig(48, 3, 96, 4, 1, 16),
  "gemma2": GemmaConfig(48, 3, 96, 4, 2, 16, **_CAPS),
  "gemma1_7b": GemmaConfig(48, 2, 96, 4, 4, 16),  # one array for q, k and v
  "gemma2_27b": GemmaConfig(48, 2, 96, 4, 2, 16, query_scale=12**-0.5, **_CAPS),
}


def config(decoder: str, vocab_size: int, num_images: int = 1) -> VLMConfig:
  llm = dataclasses.replace(DECODERS[decoder], vocab_size=vocab_size)
  return VLMConfig(_IMG, llm, num_images)


def params(config: VLMConfig, dtype: str = "float32", seed: int = 0) -> dict:
  """No bias is 0 and no scale is 1; greedy tokens depend on the image."""
  random = np.random.default_rng(seed)
  flat = {}
  for name, shape in parameter_shapes(config).items():
    leaf = random.standard_normal(shape, np.float32)
    if name.endswith(("scale", "bias")):
      leaf *= 0.2
      if name.startswith("img/") and name.endswith("scale"):
        leaf += 1.0  # the factor itself; the decoder's is 1 + scale
    elif name == EMBEDDING:
      leaf *= 0.01
    else:
      leaf *= max(shape[-3:-1]) ** -0.5
    if name == "llm/final_norm/scale":
      leaf += 20.0
    flat[name] = leaf.astype(dtype)
  return trees.unflatten(flat)


def on_one_device(params: dict) -> dict:
  """A sharding for each parameter."""
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda _: device, params)


def observations(images, instructions) -> list[Observation]:
  """Of robots with one camera, from uint8[B, T, H, W, 3]."""
  pairs = zip(images, instructions, strict=True)
  return [Observation({"primary": frames}, text) for frames, text in pairs]


def meta(config: VLMConfig, tokenizer, route: str = "rare") -> dict:
  """What a checkpoint says of itself."""
  spec = ObservationSpec(history=config.num_images).to_dict()
  actions = ActionTokenizer(RT2, tokenizer.action_route(route))
  length = actions.answer_length + 1
  return {
    "config": {"sources": {"kitchen": {"dataset": "bridge_dataset"}}},
    "model": dataclasses.asdict(config),
    "prompt": {
      "prefix_length": 40,
      "suffix_length": length,
      "template": ROBOT_TEMPLATE,
    },
    "action_tokenizers": {"kitchen": actions.to_dict()},
    "observation": spec,
    "observations": {"kitchen": spec},
    "tokenizer_sha256": tokenizer.sha256,
    "format": FORMAT,
    "statistics": {},
    "data": {},
    "versions": {"jax": "0.10.2"},
  }


def assert_identical(ours: dict, theirs: dict):
  """The same names, types and bits."""
  ours, theirs = trees.flatten(ours), trees.flatten(theirs)
  assert set(ours) == set(theirs)
  for name, leaf in ours.items():
    leaf, other = np.asarray(leaf), np.asarray(theirs[name])
    assert leaf.dtype == other.dtype, name
    np.testing.assert_array_equal(
      leaf.view(np.uint8), other.view(np.uint8), err_msg=name
    )
