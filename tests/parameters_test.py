"""The table of parameters: every row is used, and no name is left out."""

import math
import re

import numpy as np
import pytest

from rt2_jax import optimizer, parameters, trees
from rt2_jax.models import lora, variants
from rt2_jax.models.vlm import abstract_params


def shapes(llm: str, img: str = "tiny/16") -> dict[str, tuple[int, ...]]:
  """Of all parameters and of an adapter beside every matrix."""
  config = variants.vlm(
    img,
    llm,
    image_size=64,
    vocab_size=3200,
    lora_rank=2,
    lora_targets=(".*",),
  )
  flat = trees.flatten(abstract_params(config))
  return {name: leaf.shape for name, leaf in flat.items()}


def first(name: str) -> str:
  return next(p for p, _ in parameters.PARAMETERS if re.search(p, name))


def test_every_row_is_the_first_match_of_some_parameter():
  names = {name for llm in variants.DECODERS for name in shapes(llm)}
  assert {first(n) for n in names} == {p for p, _ in parameters.PARAMETERS}


def test_an_unknown_name_is_an_error_wherever_the_table_is_read():
  tree = {"llm": {"adapter": {"w": np.ones((4, 4), np.float32)}}}
  with pytest.raises(ValueError, match="'llm/adapter/w', which no row"):
    parameters.row("llm/adapter/w")
  for read in (optimizer.decay_mask, optimizer.muon_or_adamw):
    with pytest.raises(ValueError, match="'llm/adapter/w', which no row"):
      read(tree)


@pytest.mark.parametrize("llm", ["gemma_mini", "gemma_7b"])
def test_an_adapter_has_its_matrix_inputs_and_outputs(llm):
  """`a` sums over the inputs of its matrix, `b` has the outputs of it."""
  config = shapes(llm)
  adapted = lora.adapted(config)
  assert len(adapted) >= 11

  def size(name, axes):
    return math.prod(config[name][i] for i in axes)

  for name in adapted:
    w, a, b = (
      parameters.row(n).matrix
      for n in (name, f"{name}_lora/a", f"{name}_lora/b")
    )
    assert size(f"{name}_lora/a", a.inputs) == size(name, w.inputs)
    assert size(f"{name}_lora/b", b.outputs) == size(name, w.outputs)
    assert size(f"{name}_lora/a", a.outputs) == 2
    assert size(f"{name}_lora/b", b.inputs) == 2
  assert adapted == {
    name
    for name in config
    if parameters.row(name).muon and not lora.base_name(name)
  }


def test_vectors_and_adapters_stay_float32():
  for name in shapes("gemma2_tiny"):
    exact = name.endswith(("scale", "bias")) or bool(lora.base_name(name))
    assert parameters.row(name).float32 == exact, name
