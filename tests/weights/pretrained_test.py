"""Every public layout gives the same tree; anything else gives one error."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.ndimage
import torch
import transformers

from rt2_jax import sharding, trees
from rt2_jax.models.gemma import Gemma
from rt2_jax.models.vlm import VLM
from rt2_jax.weights import export, hf_config, hf_names, pretrained
from rt2_jax.weights.hf_names import EMBEDDING, POSITIONS
from tests import tiny_models

VOCAB = 512


def load(source, config, params, dtype="float32", seed=0):
  shardings = tiny_models.on_one_device(params)
  return pretrained.load(source, config, shardings, dtype, seed)


def write_npz(path, flat):
  """As numpy does: bfloat16 becomes two bytes without a type."""
  np.savez(path, **flat)
  return path


def per_layer(flat):
  """big_vision's other layout: one array for each layer."""
  out = {}
  for name, leaf in flat.items():
    for stack, one in (
      ("img/Transformer/encoderblock/", "img/Transformer/encoderblock_{}/"),
      ("llm/layers/", "llm/layers/{}/"),
    ):
      if name.startswith(stack):
        for i, layer in enumerate(leaf):
          out[name.replace(stack, one.format(i))] = layer
        break
    else:
      out[name] = leaf
  return out


@pytest.fixture(scope="module")
def model():
  """A Gemma 2 model and its parameters."""
  config = tiny_models.config("gemma2", VOCAB)
  return config, tiny_models.params(config)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
  """The same as a Hugging Face folder."""
  folder = tmp_path_factory.mktemp("paligemma")
  meta = tiny_models.meta(model[0], tokenizer)
  config, params = model
  export.to_huggingface(params, config, meta, tokenizer.model, folder)
  return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", [dict, per_layer])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_npz_of_every_layout(tmp_path, model, dtype, layout, prefix):
  config, params = model
  stored = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  flat = layout(trees.flatten(stored))
  path = write_npz(
    tmp_path / "w.npz", {prefix + name: leaf for name, leaf in flat.items()}
  )
  wanted = jax.tree.map(lambda leaf: leaf.astype("float32"), stored)
  tiny_models.assert_identical(load(path, config, params), wanted)
  tiny_models.assert_identical(load(path, config, params, dtype), stored)


def test_the_optimizer_in_a_training_checkpoint_is_left_alone(tmp_path, model):
  config, params = model
  flat = {f"params/{n}": leaf for n, leaf in trees.flatten(params).items()}
  path = write_npz(tmp_path / "w.npz", flat | {"opt/0/count": np.int32(7)})
  tiny_models.assert_identical(load(path, config, params), params)


@pytest.mark.parametrize("decoder", tiny_models.DECODERS)
def test_a_model_of_transformers_gives_its_logits(tmp_path, decoder):
  """Random weights of their own making, in the names that they write."""
  ours = tiny_models.config(decoder, VOCAB)
  fields = hf_config.to_config(ours, "float32")
  torch.manual_seed(0)
  theirs = transformers.PaliGemmaForConditionalGeneration(
    transformers.PaliGemmaConfig(**fields)
  ).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.model.language_model.norm.weight.add_(1.0)
  theirs.save_pretrained(tmp_path)
  params = load(tmp_path, ours, tiny_models.params(ours))
  random = np.random.default_rng(0)
  images = random.uniform(-1, 1, (2, 1, 32, 32, 3)).astype(np.float32)
  text = random.integers(0, VOCAB, (2, 12), np.int32)
  prefix, suffix = text[:, :7], text[:, 7:]
  logits = VLM(ours).apply(
    {"params": params}, images, prefix, np.ones_like(prefix, bool), suffix
  )
  image_ids = np.full((2, ours.num_image_tokens), VOCAB)
  ids = np.concatenate([image_ids, text[:, :-1]], 1)
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.from_numpy(ids),
      attention_mask=torch.ones(ids.shape, dtype=torch.long),
      token_type_ids=torch.from_numpy(
        np.arange(ids.shape[1]) >= image_ids.shape[1] + 7
      )
      .long()
      .expand(2, -1),
      pixel_values=torch.from_numpy(images[:, 0].transpose(0, 3, 1, 2).copy()),
    ).logits[:, -5:, :VOCAB]
  assert np.abs(logits - expected.numpy()).max() < 2e-4
  assert float(jnp.std(logits)) > 1


@pytest.mark.parametrize("generation", [4, 5])
def test_names_of_both_generations_of_transformers(
  tmp_path, model, folder, generation
):
  """4.x as the public files have it, 5.x as its state dict has it."""
  config, params = model
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  if generation == 5:
    tensors = {
      "model." + hf_names.table_name(name): tensor
      for name, tensor in tensors.items()
    }
    table = tensors["model.language_model.embed_tokens.weight"]
    tensors["lm_head.weight"] = table
  shutil.copy(folder / "config.json", tmp_path)
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  tiny_models.assert_identical(load(tmp_path, config, params), params)


def test_leaves_go_where_their_sharding_says(model, folder):
  config, params = model
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
  shardings = sharding.state_shardings(params, mesh)
  read = pretrained.load(folder, config, shardings)
  tiny_models.assert_identical(read, params)
  placed = jax.tree.map(lambda leaf: leaf.sharding, read)
  assert trees.flatten(placed) == trees.flatten(shardings)
  table = read["llm"]["embedder"]["input_embedding"]
  assert table.addressable_shards[0].data.size < table.size


@pytest.mark.parametrize("size", [16, 48, 64])
def test_position_embeddings_are_resampled(model, folder, size):
  config, params = model
  img = dataclasses.replace(config.img, image_size=size)
  read = load(folder, dataclasses.replace(config, img=img), params)
  read, old = (trees.flatten(tree) for tree in (read, params))
  grid = old.pop(POSITIONS).reshape(4, 4, -1)
  side = size // 8
  expected = scipy.ndimage.zoom(grid, (side / 4, side / 4, 1), order=1)
  new = np.asarray(read.pop(POSITIONS)).reshape(side, side, -1)
  np.testing.assert_array_equal(new, expected)
  np.testing.assert_array_equal(new[-1, 0], grid[-1, 0])  # corners stay
  tiny_models.assert_identical(trees.unflatten(read), trees.unflatten(old))


def test_vocabulary_rows_are_added(model, folder, tmp_path):
  config, params = model
  llm = dataclasses.replace(config.llm, vocab_size=VOCAB + 4096)
  larger = dataclasses.replace(config, llm=llm)
  flat = trees.flatten(params)
  path = write_npz(tmp_path / "w.npz", flat)
  one, two, other = (
    np.asarray(trees.flatten(load(path, larger, params, seed=s))[EMBEDDING])
    for s in (0, 0, 1)
  )
  np.testing.assert_array_equal(one[:VOCAB], flat[EMBEDDING])
  assert abs(one[VOCAB:].std() - 0.02) < 2e-4
  np.testing.assert_array_equal(one, two)
  assert (one[VOCAB:] != other[VOCAB:]).any()


def change_table(folder, tmp_path, rows, fill=0.0):
  """The folder with another number of rows in its token table."""
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  file = tmp_path / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  table = tensors["language_model.model.embed_tokens.weight"][:VOCAB]
  padding = np.full((rows - VOCAB, table.shape[1]), fill, np.float32)
  table = np.concatenate([table, padding])
  tensors["language_model.model.embed_tokens.weight"] = table
  safetensors.numpy.save_file(tensors, file)
  config = json.loads((tmp_path / "config.json").read_text())
  config["text_config"]["vocab_size"] = rows
  (tmp_path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("rows", [512, 513, 514, 576, 640, 768, 1000])
def test_padding_of_the_token_table_is_dropped(model, folder, tmp_path, rows):
  config, params = model
  change_table(folder, tmp_path, rows, fill=7.0)
  tiny_models.assert_identical(load(tmp_path, config, params), params)
  llm = dataclasses.replace(config.llm, vocab_size=VOCAB + 80)
  larger = load(tmp_path, dataclasses.replace(config, llm=llm), params)
  table = np.asarray(trees.flatten(larger)[EMBEDDING])
  np.testing.assert_array_equal(table[:VOCAB], trees.flatten(params)[EMBEDDING])
  assert np.abs(table[VOCAB:]).max() < 0.1  # drawn, not the padding


@pytest.mark.parametrize(
  ("file", "content"),
  [
    (
      "tokenizer.json",
      {
        "added_tokens": [
          {"content": "<image>", "id": 512},
          {"content": "<go>", "id": 513},
        ]
      },
    ),
    ("added_tokens.json", {"<go>": 513}),
    (
      "tokenizer_config.json",
      {"added_tokens_decoder": {"513": {"content": "<go>"}}},
    ),
  ],
)
def test_rows_that_someone_uses_are_not_dropped(
  model, folder, tmp_path, file, content
):
  config, params = model
  change_table(folder, tmp_path, 576)
  (tmp_path / file).write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"<go>.*513.*behind id 512"):
    load(tmp_path, config, params)


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("img/head/bias", lambda x: x * np.nan, "got nan in 'img/head/bias'"),
    ("llm/layers/mlp/linear", lambda x: x / 0.0, r"inf in 'llm/layers/mlp/li"),
    ("img/head/kernel", lambda x: x.astype(np.int8), "img/head/kernel of int8"),
    ("llm/final_norm/scale", lambda x: x > 0, "llm/final_norm/scale of bool"),
    ("img/head/bias", lambda x: x + 1j, "img/head/bias of complex"),
    (EMBEDDING, lambda x: x.astype("V1"), "input_embedding of .*V1"),
  ],
)
def test_an_npz_of_other_numbers_is_refused_by_name(
  tmp_path, model, name, change, message
):
  config, params = model
  flat = trees.flatten(params)
  with np.errstate(divide="ignore", invalid="ignore"):
    flat[name] = np.asarray(change(np.asarray(flat[name])))
  path = write_npz(tmp_path / "w.npz", flat)
  with pytest.raises(ValueError, match=message):
    load(path, config, params)


def test_a_folder_with_nan_is_refused_by_name(tmp_path, model, folder):
  change_table(folder, tmp_path, VOCAB)
  file = tmp_path / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  name = "vision_tower.vision_model.post_layernorm.weight"
  tensors[name][3] = np.nan
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(ValueError, match="nan in 'img/Transformer/encoder_norm"):
    load(tmp_path, *model)


@pytest.mark.parametrize("first", ["bfloat16", "float16"])
def test_tensors_of_two_types_are_not_rounded_to_the_first(
  tmp_path, model, first
):
  config, params = model
  flat = per_layer(trees.flatten(params))
  rounded = {}
  for name in flat:
    if name.startswith("llm/layers/0/"):
      flat[name] = rounded[name] = np.asarray(flat[name]).astype(first)
  read = trees.flatten(
    load(write_npz(tmp_path / "w.npz", flat), config, params)
  )
  for name, leaf in trees.flatten(params).items():
    if name.startswith("llm/layers/"):
      np.testing.assert_array_equal(read[name][1:], leaf[1:])


def test_siglip_and_gemma_from_two_files(tmp_path):
  """As published: a contrastive model, and Gemma with its 128 idle rows."""
  config = tiny_models.config("gemma1", 257_152)
  flat = trees.flatten(tiny_models.params(config))
  img = {n: w for n, w in flat.items() if n.startswith("img/")}
  head = {n: img.pop(n) for n in ("img/head/kernel", "img/head/bias")}
  extra = {"txt/Embed_0/embedding": np.ones(3), "t": np.ones(1)}
  extra["img/MAPHead_0/probe"] = np.ones((1, 1, 32))
  table = np.concatenate([flat[EMBEDDING][:256_000], np.ones((128, 48))])
  llm = {
    name.removeprefix("llm/"): leaf
    for name, leaf in (flat | {EMBEDDING: table}).items()
    if name.startswith("llm/")
  }
  paths = {
    "img": write_npz(
      tmp_path / "img.npz",
      {f"params/{n}": w for n, w in (img | extra).items()},
    ),
    "llm": write_npz(tmp_path / "llm.npz", llm),
  }
  read = trees.flatten(load(paths, config, trees.unflatten(flat)))
  table = np.asarray(read.pop(EMBEDDING))
  np.testing.assert_array_equal(table[:256_000], flat.pop(EMBEDDING)[:256_000])
  assert abs(table[256_000:].std() - 0.02) < 1e-3
  assert np.asarray(read.pop("img/head/kernel")).std() > 0.1
  assert not np.asarray(read.pop("img/head/bias")).any()
  rest = {name: flat[name] for name in flat if name not in head}
  tiny_models.assert_identical(trees.unflatten(read), trees.unflatten(rest))
  with pytest.raises(ValueError, match="expected the paths of 'img' and 'llm'"):
    load({"img": paths["img"]}, config, {})


def shaken(model, path):
  """Saves a model of transformers in which no bias is 0 and no scale is 1."""
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(path)
  return model


def siglip(path, kind="SiglipVisionModel", **changes):
  """Stock, in the sizes of our tiny encoder."""
  fields = hf_config.to_config(tiny_models.config("gemma1", VOCAB), "float32")
  fields = fields["vision_config"] | {"vision_use_head": True} | changes
  if kind == "SiglipVisionModel":
    config = transformers.SiglipVisionConfig(**fields)
  else:
    text = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 64}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.SiglipConfig(text_config=text, vision_config=fields)
  return shaken(getattr(transformers, kind)(config), path)


def gemma(path, decoder, **changes):
  """Stock, in the sizes of one of our tiny decoders."""
  fields = hf_config.to_config(tiny_models.config(decoder, VOCAB), "float32")
  fields = fields["text_config"] | {"vocab_size": VOCAB} | changes
  kind = {"gemma": "Gemma", "gemma2": "Gemma2"}[fields["model_type"]]
  config = getattr(transformers, f"{kind}Config")(**fields)
  model = getattr(transformers, f"{kind}ForCausalLM")(config)
  return shaken(model, path)


@pytest.mark.parametrize("kind", ["SiglipVisionModel", "SiglipModel"])
def test_siglip_of_transformers_gives_its_tokens(tmp_path, kind):
  ours = tiny_models.config("gemma1", VOCAB)
  theirs = siglip(tmp_path / "img", kind).eval()
  gemma(tmp_path / "llm", "gemma1")
  params = load_parts(tmp_path, ours)
  assert np.asarray(params["img"]["head"]["kernel"]).std() > 0.1
  # What comes before the projection, which is drawn.
  params["img"]["head"]["kernel"] = np.eye(32, 48, dtype=np.float32)
  random = np.random.default_rng(0)
  images = random.uniform(-1, 1, (2, 1, 32, 32, 3)).astype(np.float32)
  tokens = VLM(ours).apply({"params": params}, images, method="embed_images")
  pixels = torch.from_numpy(images[:, 0].transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    expected = getattr(theirs, "vision_model", theirs)(pixels)
  expected = expected.last_hidden_state.numpy()
  assert np.abs(tokens[..., :32] - expected).max() < 2e-5
  assert expected.std() > 0.5


@pytest.mark.parametrize("decoder", tiny_models.DECODERS)
def test_gemma_of_transformers_gives_its_logits(tmp_path, decoder):
  ours = tiny_models.config(decoder, VOCAB)
  siglip(tmp_path / "img")
  theirs = gemma(tmp_path / "llm", decoder).eval()
  params = load_parts(tmp_path, ours)
  ids = np.random.default_rng(0).integers(0, VOCAB, (2, 6))
  mask = np.broadcast_to(np.tri(6, dtype=bool), (2, 6, 6))
  model = Gemma(ours.llm).bind({"params": params["llm"]})
  positions = np.broadcast_to(np.arange(6), ids.shape)
  logits = model.logits(model(model.embed(ids), mask, positions))
  with torch.no_grad():
    expected = theirs(torch.from_numpy(ids)).logits.numpy()
  assert np.abs(logits - expected).max() < 2e-4
  assert expected.std() > 0.5


def load_parts(folder, config):
  paths = {part: str(folder / part) for part in ("img", "llm")}
  return load(paths, config, tiny_models.params(config))


def test_parts_may_be_a_file_and_a_folder(tmp_path):
  config = tiny_models.config("gemma2", VOCAB)
  flat = trees.flatten(tiny_models.params(config))
  img = {name: w for name, w in flat.items() if name.startswith("img/")}
  del img["img/head/kernel"], img["img/head/bias"]
  gemma(tmp_path / "llm", "gemma2")
  paths = {"img": write_npz(tmp_path / "img.npz", img), "llm": tmp_path / "llm"}
  read = trees.flatten(load(paths, config, trees.unflatten(flat)))
  for name, leaf in img.items():
    np.testing.assert_array_equal(read[name], leaf)


@pytest.mark.parametrize(
  ("img", "llm", "message"),
  [
    ({"hidden_size": 64}, {}, r"img: got .* img.width is 64, asked for 32"),
    ({}, {"head_dim": 8}, r"llm: got .* llm.head_dim is 8, asked for 16"),
    (
      {},
      {"vocab_size": 600},
      "got a vocabulary of 600 tokens, expected at mos",
    ),
  ],
)
def test_parts_of_another_model_are_refused(tmp_path, img, llm, message):
  siglip(tmp_path / "img", **img)
  gemma(tmp_path / "llm", "gemma1", **llm)
  with pytest.raises(ValueError, match=message):
    load_parts(tmp_path, tiny_models.config("gemma1", VOCAB))


def test_parts_that_are_mixed_up_or_strange_are_refused(tmp_path):
  config = tiny_models.config("gemma1", VOCAB)
  siglip(tmp_path / "img")
  gemma(tmp_path / "llm", "gemma2")
  with pytest.raises(
    ValueError, match="Gemma 2 weights, the model is a Gemma "
  ):
    load_parts(tmp_path, config)
  paths = {"img": tmp_path / "llm", "llm": tmp_path / "img"}
  with pytest.raises(
    ValueError, match="got model_type 'gemma2' for 'img', expected one of sigl"
  ):
    load(paths, config, tiny_models.params(config))
  gemma(tmp_path / "llm", "gemma1")
  file = tmp_path / "llm" / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(
    ValueError,
    match="1 missing: language_model.norm.weight; "
    "1 extra: language_model.extra.weight",
  ):
    load_parts(tmp_path, config)
  with pytest.raises(ValueError, match="nowhere/img', which does not exist"):
    load_parts(tmp_path / "nowhere", config)


def test_all_wrong_names_are_listed_at_once(tmp_path, model):
  config, params = model
  flat = trees.flatten(params)
  del flat["img/head/bias"], flat["llm/layers/mlp/linear"]
  flat["img/cls"] = np.zeros(3)
  flat["img/head/kernel"] = np.zeros((32, 49))
  path = write_npz(tmp_path / "w.npz", flat)
  with pytest.raises(ValueError) as error:
    load(path, config, params)
  for part in (
    str(path),
    "2 missing: img/head/bias, llm/layers/mlp/linear",
    "1 extra: img/cls",
    "1 mis-shaped: img/head/kernel [32, 49] instead of [32, 48]",
  ):
    assert part in str(error.value)


def test_a_lost_layer_is_named(tmp_path, model):
  config, params = model
  flat = per_layer(trees.flatten(params))
  del flat["llm/layers/1/mlp/linear"]
  path = write_npz(tmp_path / "w.npz", flat)
  with pytest.raises(
    ValueError, match=r"got layers \[0, 2\] of 'llm/layers/mlp/linear'"
  ):
    load(path, config, params)


@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize("asked", [1, 2])
def test_gemma_1_and_2_are_not_each_other(tmp_path, tokenizer, kind, asked):
  """An .npz shows it by its names, a folder in its config."""
  configs = [tiny_models.config(f"gemma{i}", VOCAB) for i in (1, 2)]
  found = 3 - asked
  llm = dataclasses.replace(configs[found - 1].llm, num_kv_heads=1)
  config = dataclasses.replace(configs[found - 1], llm=llm)
  params = tiny_models.params(config)
  source = tmp_path / "weights"
  if kind == "npz":
    source = write_npz(tmp_path / "w.npz", trees.flatten(params))
  else:
    meta = tiny_models.meta(config, tokenizer)
    export.to_huggingface(params, config, meta, tokenizer.model, source)
  message = f"these are Gemma {found} weights, the model is a Gemma {asked}"
  with pytest.raises(ValueError, match=message):
    load(source, configs[asked - 1], params)


def test_a_config_that_disagrees_is_refused(model, folder):
  """Shapes would fit; the numbers would be wrong."""
  config, params = model
  llm = dataclasses.replace(config.llm, attn_softcap=0.0, query_scale=0.3)
  with pytest.raises(
    ValueError,
    match=r"llm.attn_softcap is 50.0, asked for 0.0; "
    r"llm.query_scale is 0.25, asked for 0.3",
  ):
    load(folder, dataclasses.replace(config, llm=llm), params)


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_vocabulary_that_is_too_small_is_refused(
  tmp_path, model, folder, kind
):
  config, params = model
  smaller = dataclasses.replace(
    config, llm=dataclasses.replace(config.llm, vocab_size=400)
  )
  source = folder
  if kind == "npz":
    source = write_npz(tmp_path / "w.npz", trees.flatten(params))
  with pytest.raises(
    ValueError, match=r"got a vocabulary of \d+ tokens, expected at most the "
  ):
    load(source, smaller, params)


@pytest.mark.parametrize("kind", ["llama", "clip"])
def test_other_architectures_are_refused(tmp_path, model, folder, kind):
  shutil.copytree(folder, tmp_path / kind)
  config = {"model_type": kind, "hidden_size": 8}
  (tmp_path / kind / "config.json").write_text(json.dumps(config))
  with pytest.raises(
    ValueError, match=f"config.json: got model_type '{kind}', expected 'pali"
  ):
    load(tmp_path / kind, *model)


def test_damaged_files_are_refused(tmp_path, model, folder):
  config, params = model
  broken = tmp_path / "broken"
  shutil.copytree(folder, broken)
  file = broken / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(ValueError, match="not a whole safetensors file"):
    load(broken, config, params)
  path = write_npz(tmp_path / "w.npz", trees.flatten(params))
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match=r"not a whole \.npz file"):
    load(path, config, params)


def test_a_lost_shard_is_named(tmp_path, model, tokenizer):
  config, params = model
  meta = tiny_models.meta(config, tokenizer)
  export.to_huggingface(
    params, config, meta, tokenizer.model, tmp_path, shard_bytes=100_000
  )
  lost = sorted(tmp_path.glob("*.safetensors"))[1]
  lost.unlink()
  with pytest.raises(ValueError, match=f"got no {lost.name}, which model"):
    load(tmp_path, config, params)


def shards(model, tokenizer, folder):
  """A folder of several shards."""
  config, params = model
  meta = tiny_models.meta(config, tokenizer)
  export.to_huggingface(
    params, config, meta, tokenizer.model, folder, shard_bytes=100_000
  )
  return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("lost", [False, True])
def test_one_file_beside_an_index_is_what_transformers_reads(
  tmp_path, model, folder, tokenizer, lost
):
  """What `save_pretrained` leaves behind: the older shards, with an index."""
  config, params = model
  older = jax.tree.map(lambda leaf: leaf + 1, params)
  files = shards((config, older), tokenizer, tmp_path)
  shutil.copy(folder / "model.safetensors", tmp_path)
  if lost:
    for file in files:
      file.unlink()
  tiny_models.assert_identical(load(tmp_path, config, params), params)


def test_shards_and_index_must_agree(tmp_path, model, tokenizer):
  files = shards(model, tokenizer, tmp_path)
  index = tmp_path / "model.safetensors.index.json"
  text = index.read_text()
  first = safetensors.numpy.load_file(files[0])
  name, tensor = next(iter(first.items()))
  second = safetensors.numpy.load_file(files[1])
  safetensors.numpy.save_file(second | {name: tensor}, files[1])
  with pytest.raises(ValueError, match=f"got '{name}' in .*00001.* in .*00002"):
    load(tmp_path, *model)
  safetensors.numpy.save_file(second | {"x": tensor}, files[1])
  with pytest.raises(ValueError, match="1 extra: x"):
    load(tmp_path, *model)
  del second[next(iter(second))]
  safetensors.numpy.save_file(second, files[1])
  with pytest.raises(ValueError, match="got no tensor '.*' in any shard"):
    load(tmp_path, *model)
  for broken, message in (
    (text[:-9], "not a whole JSON file"),
    ("[]", "a JSON list"),
    ("{}", "no 'weight_map'"),
    ('{"weight_map": {"x": "../w.safetensors"}}', "no 'weight_map'"),
  ):
    index.write_text(broken)
    with pytest.raises(ValueError, match=message):
      load(tmp_path, *model)
  index.unlink()
  with pytest.raises(
    ValueError, match=r"00001.*, expected model.safetensors, "
  ):
    load(tmp_path, *model)


def test_nothing_is_unpickled(tmp_path, model, folder):
  config, params = model
  for name in ("weights.bin", "weights.pt"):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ValueError, match="a pickled file, which could run any"):
      load(tmp_path / name, config, params)
  objects = trees.flatten(params) | {"img/note": np.array([{}], object)}
  path = write_npz(tmp_path / "w.npz", objects)
  with pytest.raises(ValueError, match=r"Python objects \(img/note\)"):
    load(path, config, params)
  (tmp_path / "old").mkdir()
  shutil.copy(folder / "config.json", tmp_path / "old")
  (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"anything")
  with pytest.raises(ValueError, match="a pickled file, which could run any"):
    load(tmp_path / "old", config, params)


def test_quantised_and_untied_weights_are_refused(tmp_path, model, folder):
  config, params = model
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  shutil.copy(folder / "config.json", tmp_path)
  table = tensors["language_model.model.embed_tokens.weight"]
  for change, message in (
    ({"lm_head.weight": table + 1}, "differs from the token table"),
    ({"x": np.zeros(3, np.int8)}, "use weights that are not quantised"),
  ):
    safetensors.numpy.save_file(
      tensors | change, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=message):
      load(tmp_path, config, params)


def test_a_path_that_does_not_exist(tmp_path, model):
  with pytest.raises(ValueError, match="which does not exist; pass an .npz"):
    load(tmp_path / "nowhere", *model)
