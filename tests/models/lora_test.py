"""LoRA: adapters beside matrices, products through the rank, targets."""

import dataclasses

import jax
import numpy as np
import pytest

from rt2_jax import trees
from rt2_jax.models import lora
from rt2_jax.models.lora_config import LoraConfig
from rt2_jax.models.vlm import VLM, init_params
from tests import tiny_models

DECODERS = list(tiny_models.DECODERS)


def adapted(config, rank=3, targets=(".*",)):
  adapters = LoraConfig(rank, 6.0, targets)
  img, llm = (
    dataclasses.replace(part, lora=adapters)
    for part in (config.img, config.llm)
  )
  return dataclasses.replace(config, img=img, llm=llm)


@pytest.mark.parametrize(
  ("equation", "down", "up"),
  [
    ("btd,df->btf", "btd,dr->btr", "btr,rf->btf"),
    ("btd,cndh->cbtnh", "btd,cdr->cbtr", "cbtr,crnh->cbtnh"),
    ("btnh,nhd->btd", "btnh,nhr->btr", "btr,rd->btd"),
  ],
)
def test_a_product_is_split_through_the_rank(equation, down, up):
  assert lora.equations(equation) == (down, up)


def apply(config, params):
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 1, 32, 32, 3)).astype(np.float32)
  tokens = rng.integers(2, 90, (2, 5))
  mask = np.ones((2, 5), bool)
  return jax.jit(VLM(config).apply)(
    {"params": params}, images, tokens, mask, tokens
  )


@pytest.mark.parametrize("decoder", DECODERS)
def test_step_0_equals_the_base(decoder):
  base, config, params = adapted_model(decoder)
  plain = apply(base, tiny_models.params(base))
  np.testing.assert_array_equal(apply(config, params), plain)


def adapted_model(decoder):
  """A base, the same with adapters, and parameters of the latter."""
  base = tiny_models.config(decoder, 90)
  config = adapted(base)
  drawn = trees.flatten(init_params(config, jax.random.key(0)))
  params = drawn | trees.flatten(tiny_models.params(base))
  return base, config, trees.unflatten(params)
