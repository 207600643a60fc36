"""What PEFT makes of our adapters on stock transformers is what we make."""

import dataclasses
import json

import jax
import numpy as np
import peft
import pytest
import torch

from rt2_jax import augment, trees
from rt2_jax.models import lora
from rt2_jax.models.lora_config import LoraConfig
from rt2_jax.models.vlm import VLM, init_params
from rt2_jax.prompt import Prompt
from rt2_jax.pytorch.policy import TorchPolicy
from rt2_jax.weights import export, merging, peft_format
from tests import tiny_models

# Both projections of the encoder's kind, and all of the decoder's.
TARGETS = ("llm/layers/", "encoderblock/.*(query|out|Dense_1)/", "img/head/")


@pytest.fixture(scope="module", params=["gemma2", "gemma1_7b"])
def case(request, tmp_path_factory, tokenizer):
  """A base's folder, a folder of PEFT, and the model with adapters."""
  base = tiny_models.config(request.param, tokenizer.vocab_size)
  size = LoraConfig(3, 6.0, TARGETS)
  img, llm = (
    dataclasses.replace(part, lora=size) for part in (base.img, base.llm)
  )
  config = dataclasses.replace(base, img=img, llm=llm)
  weights = tiny_models.params(base)
  drawn = trees.flatten(init_params(config, jax.random.key(0)))
  random = np.random.default_rng(0)
  adapters = {
    name: random.normal(0, 0.3, leaf.shape).astype(np.float32)
    for name, leaf in drawn.items()
    if lora.base_name(name)
  }
  params = trees.unflatten(trees.flatten(weights) | adapters)
  folder = tmp_path_factory.mktemp(request.param)
  meta = tiny_models.meta(base, tokenizer)
  files = base, meta, tokenizer.model, folder / "base"
  export.to_huggingface(weights, *files)
  peft_format.write(params, config, str(folder / "base"), folder / "peft")
  return folder, config, params


def run(tokenizer, config):
  """Inputs; and the logits of a config's parameters on them."""
  random = np.random.default_rng(0)
  prompt = Prompt(tokenizer, 40, 9)
  prefix, mask_input = prompt.robot_prefixes(["pick apple", "open top drawer"])
  suffix = random.integers(0, tokenizer.vocab_size, (2, 9), np.int32)
  images = random.integers(0, 256, (2, 1, 48, 60, 3), np.uint8)
  prepared = augment.prepare(images, config.img.image_size)

  def logits(config, params):
    return np.asarray(
      jax.jit(VLM(config).apply)(
        {"params": params}, prepared, prefix, mask_input, suffix
      )
    )

  return (images, prefix, mask_input, suffix), logits


def test_peft_gives_our_logits(case, tokenizer):
  folder, config, params = case
  inputs, logits = run(tokenizer, config)
  ours = logits(config, params)
  plain = TorchPolicy.from_folder(folder / "base")
  before = plain.logits(*inputs)
  model = peft.PeftModel.from_pretrained(plain.model, folder / "peft").eval()
  adapted = TorchPolicy.around(model.base_model.model, folder / "base")
  with torch.no_grad():
    theirs = adapted.logits(*inputs)
  assert np.abs(theirs - ours).max() < 2e-4
  assert np.abs(before - ours).max() > 0.1  # the adapters do something


def test_adapters_there_and_back(case):
  folder, config, params = case
  flat = trees.flatten(params)
  own = trees.unflatten({n: flat[n] for n in lora.adapters(flat)})
  read = peft_format.read(folder / "peft", own, config)
  tiny_models.assert_identical(read, own)
  modes = {path.stat().st_mode for path in (folder / "peft").iterdir()}
  assert len(modes) == 1  # who may read one file may read the other


def test_what_peft_itself_writes_is_read(case, tmp_path):
  """Its config names every field that this release of PEFT has."""
  folder, config, params = case
  model = TorchPolicy.from_folder(folder / "base").model
  loaded = peft.PeftModel.from_pretrained(model, folder / "peft")
  loaded.save_pretrained(tmp_path)
  flat = trees.flatten(params)
  own = trees.unflatten({n: flat[n] for n in lora.adapters(flat)})
  tiny_models.assert_identical(peft_format.read(tmp_path, own, config), own)


def test_merged_matrices_give_the_same_logits(case, tokenizer):
  _, config, params = case
  _, logits = run(tokenizer, config)
  merged = merging.merge(params, config)
  found = logits(config.without_adapters(), merged)
  np.testing.assert_allclose(found, logits(config, params), atol=2e-4)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"use_dora": True}, "got use_dora = True, expected False"),
    ({"init_lora_weights": "pissa"}, "= 'pissa', expected True"),
    ({"alora_invocation_tokens": [5]}, r"_tokens = \[5\], expected None"),
    ({"of_a_later_release": 1}, "of_a_later_release = 1, expected None"),
    ({"r": 8}, "got r = 8, expected 3"),
    ({"lora_alpha": 1}, "got lora_alpha = 1, expected 6.0"),
  ],
)
def test_other_adapters_are_refused(case, tmp_path, fields, message):
  folder, config, params = case
  text = (folder / "peft" / peft_format.CONFIG).read_text()
  changed = json.dumps(json.loads(text) | fields)
  (tmp_path / peft_format.CONFIG).write_text(changed)
  (tmp_path / peft_format.TENSORS).symlink_to(
    folder / "peft" / peft_format.TENSORS
  )
  with pytest.raises(ValueError, match=message):
    peft_format.read(tmp_path, params, config)
