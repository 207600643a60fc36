"""What stock transformers makes of an exported folder is what we make of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from rt2_jax import augment, trees
from rt2_jax.models.vlm import VLM
from rt2_jax.prompt import Prompt
from rt2_jax.pytorch.policy import TorchPolicy
from rt2_jax.weights import export, hf_config, hf_names, pretrained
from tests import tiny_models

GRADIENT_TOLERANCE = 5e-5  # relative to the largest entry
GRADIENT_FLOOR = 1e-3  # of the global norm; below it a gradient is rounding


def write(folder, decoder, tokenizer, dtype="float32", num_images=1, **kwargs):
  """Exports a tiny model; returns its config and parameters."""
  config = tiny_models.config(decoder, tokenizer.vocab_size, num_images)
  params = tiny_models.params(config, dtype)
  meta = tiny_models.meta(config, tokenizer)
  export.to_huggingface(params, config, meta, tokenizer.model, folder, **kwargs)
  return config, params


@pytest.fixture(scope="module", params=tiny_models.DECODERS)
def case(request, tmp_path_factory, tokenizer):
  """A folder, and the config and parameters that are in it."""
  folder = tmp_path_factory.mktemp(request.param)
  return folder, *write(folder, request.param, tokenizer, num_images=2)


@pytest.fixture(scope="module")
def inputs(tokenizer):
  """Images, and prefixes and suffixes of different lengths."""
  random = np.random.default_rng(0)
  prompt = Prompt(tokenizer, 40, 9)
  prefix, mask_input = prompt.robot_prefixes(["pick apple", "open top drawer"])
  suffix = random.integers(0, tokenizer.vocab_size, (2, 9), np.int32)
  images = random.integers(0, 256, (2, 2, 48, 60, 3), np.uint8)
  return images, prefix, mask_input, suffix


def test_transformers_loads_every_tensor(case):
  folder, *_ = case
  _, info = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    folder, output_loading_info=True
  )
  assert not any(info.values()), info


def test_image_tokens_and_logits(case, inputs):
  folder, config, params = case
  images, *text = inputs
  policy = TorchPolicy.from_folder(folder)
  prepared = augment.prepare(images, config.img.image_size)
  apply = jax.jit(VLM(config).apply, static_argnames="method")
  tokens = apply({"params": params}, prepared, method="embed_images")
  logits = apply({"params": params}, prepared, *text)
  assert np.abs(policy.image_tokens(images) - tokens).max() < 1e-5
  assert np.abs(policy.logits(images, *text) - logits).max() < 2e-4
  assert float(jnp.std(logits)) > 1  # the tolerance means something


@pytest.mark.parametrize(
  "case", ["gemma1", "gemma2"], indirect=True, scope="module"
)
def test_gradients(case, inputs):
  """Of the mean loss, for every parameter, mapped by the same table."""
  folder, config, params = case
  images, prefix, mask_input, suffix = inputs
  policy = TorchPolicy.from_folder(folder)
  prepared = augment.prepare(images, config.img.image_size)

  def loss(params):
    logits = VLM(config).apply(
      {"params": params}, prepared, prefix, mask_input, suffix
    )
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, suffix[..., None], -1).mean()

  ours = trees.flatten(jax.jit(jax.grad(loss))(params))
  norm = np.linalg.norm([np.linalg.norm(g) for g in ours.values()])
  shown = np.ones(images.shape[:2], bool)
  inputs = policy.inputs(shown, prefix, mask_input, suffix[:, :-1])
  logits = policy.model(
    **inputs,
    pixel_values=policy.prepare(images, 2),
    logits_to_keep=suffix.shape[1],
  ).logits[..., : config.llm.vocab_size]
  torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), torch.from_numpy(suffix).long().flatten()
  ).backward()
  theirs = dict(policy.model.model.named_parameters())
  for rule in hf_names.rules(config):
    for name, expected in rule.split(np.asarray(ours[rule.ours])):
      got = theirs[name].grad.numpy()[: len(expected)]
      scale = max(np.abs(expected).max(), GRADIENT_FLOOR * norm)
      error = np.abs(got - expected).max() / scale
      assert error < GRADIENT_TOLERANCE, (name, error)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [20_000, 2**31])
def test_there_and_back_is_bit_identical(
  tmp_path, tokenizer, dtype, shard_bytes
):
  config, params = write(
    tmp_path, "gemma2", tokenizer, dtype, shard_bytes=shard_bytes
  )
  shardings = tiny_models.on_one_device(params)
  read = pretrained.load(tmp_path, config, shardings, dtype)
  tiny_models.assert_identical(read, params)
  described = pretrained.read_config(tmp_path)
  assert described.img == config.img
  assert described.llm == dataclasses.replace(
    config.llm, query_scale=config.llm.query_factor
  )
  assert (tmp_path / "model.safetensors").exists() == (shard_bytes > 20_000)


def test_a_used_folder_is_refused(tmp_path, tokenizer):
  (tmp_path / "model-00001-of-00002.safetensors").write_text("older")
  with pytest.raises(ValueError, match="got output .*, which is not empty"):
    write(tmp_path, "gemma1", tokenizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_big_vision_file_holds_the_same_bits(tmp_path, dtype):
  config = tiny_models.config("gemma1", 512)
  params = tiny_models.params(config, dtype)
  export.to_big_vision(params, tmp_path / "a.npz")
  shardings = tiny_models.on_one_device(params)
  read = pretrained.load(tmp_path / "a.npz", config, shardings, dtype)
  tiny_models.assert_identical(read, params)
  export.to_big_vision(read, tmp_path / "b.npz")
  one, two = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
  assert "params/llm/layers/attn/q_einsum/w" in one.files
  assert one.files == two.files
  for name in one.files:
    assert one[name].tobytes() == two[name].tobytes()


def test_auto_processor_asks_as_our_prompt_does(tmp_path, tokenizer):
  config, _ = write(tmp_path, "gemma1", tokenizer)
  auto = transformers.AutoProcessor.from_pretrained(tmp_path)
  random = np.random.default_rng(0)
  # Smooth, as PIL works in whole levels.
  small = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
  image = small.resize((60, 48), Image.BILINEAR)
  question = "Q: what action should the robot take to pick apple? A:"
  fields = auto(images=image, text="<image>" + question, return_tensors="np")
  prefix, mask_input = Prompt(tokenizer, 40, 9).prefix(question)
  ids = fields["input_ids"][0]
  n = config.num_image_tokens
  assert ids[:n].tolist() == [tokenizer.vocab_size] * n
  assert ids[n:].tolist() == prefix[mask_input].tolist()
  ours = augment.prepare(np.asarray(image)[None, None], config.img.image_size)
  theirs = fields["pixel_values"][0].transpose(1, 2, 0)
  assert np.abs(theirs - ours[0, 0]).max() < 1.5 / 127.5


def test_generation_keeps_out_of_the_padding(tmp_path, tokenizer):
  """Zero rows have logit 0; with all others below they would be chosen."""
  config, _ = write(tmp_path, "gemma1", tokenizer)
  policy = TorchPolicy.from_folder(tmp_path)
  assert policy.model.config.text_config.vocab_size > config.llm.vocab_size
  images = np.zeros((1, 1, 32, 32, 3), np.uint8)
  shown = np.ones((1, 1), bool)
  inputs = policy.inputs(shown, *policy.prompt.robot_prefixes(["stop"]))
  inputs.pop("position_ids")
  with torch.no_grad():
    policy.model.model.language_model.norm.weight.copy_(-1.0 + torch.zeros(48))
    tokens = policy.model.generate(
      **inputs, pixel_values=policy.prepare(images, 1), max_new_tokens=3
    )
  assert tokens[0, -3:].max() < config.llm.vocab_size


@pytest.mark.parametrize(
  ("decoder", "change", "message"),
  [
    ("gemma1", {"final_softcap": 30.0}, "transformers' Gemma 1 has none"),
    ("gemma2", {"query_scale": 0.3}, "1 / sqrt of a whole number"),
  ],
)
def test_a_decoder_that_transformers_lacks_is_refused(decoder, change, message):
  config = tiny_models.config(decoder, 512)
  llm = dataclasses.replace(config.llm, **change)
  with pytest.raises(ValueError, match=message):
    hf_config.to_config(dataclasses.replace(config, llm=llm), "float32")
