"""The model against numbers of the reference implementation, big_vision.

Every `*.npz` in `RT2_GOLDEN_DIR` (default: `shared/golden` beside the
repository) holds parameters, inputs and outputs of one tiny model, in either
parameter layout. The reference leaves the final softcap out in training and in
the first decode step; we always apply it, so a model without it is built where
its numbers are needed.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax import trees
from rt2_jax.models import gemma, vlm
from rt2_jax.models.variants import GemmaConfig, SiglipConfig, VLMConfig

GIVEN = os.environ.get("RT2_GOLDEN_DIR")
DEFAULT = pathlib.Path(__file__).resolve().parents[2] / "shared" / "golden"
FOLDER = pathlib.Path(GIVEN) if GIVEN else DEFAULT
if GIVEN is None and not FOLDER.is_dir():
  pytest.skip(
    f"no reference numbers: set RT2_GOLDEN_DIR, or put them in {FOLDER}",
    allow_module_level=True,
  )
FILES = sorted(FOLDER.glob("*.npz"))

# Absolute, by output. Noise between correct float32 implementations is a third
# of these; the smallest wrong choice, a norm's epsilon, is well above them.
TOLERANCE = {
  "img_stem": 1e-5,
  "img_encoded": 1e-5,
  "img_zimg": 1e-5,
  "txt_emb": 1e-5,
  "attn_mask": 0,
  "llm_pre_logits": 2e-4,
  "text_logits": 2e-4,
  "seq_logits": 2e-4,
  "alt_rsqrt_emb_per_head/text_logits": 2e-4,
  "token_nll": 2e-4,
  "loss_per_example": 1e-5,
  "loss": 1e-5,
  "decode/tokens": 0,
  "decode/logits": 2e-4,
  "decode_nocap/logits": 2e-4,
}
GRADIENT_TOLERANCE = 5e-5  # relative to the norm, or to the largest entry
GRADIENT_FLOOR = 1e-3  # of the global norm; below it a gradient is rounding
REQUIRED = {
  "img_zimg",
  "text_logits",
  "loss",
  "grad_norm_global",
  "decode/tokens",
  "decode/logits",
}


class Case(NamedTuple):
  """One file: its inputs and outputs, and the model it describes."""

  inputs: dict[str, np.ndarray]
  outputs: dict[str, np.ndarray]
  config: VLMConfig
  params: dict

  def apply(self, method, *args, **changes):
    """`method` of the model, compiled, with its decoder changed or not."""
    llm = dataclasses.replace(self.config.llm, **changes)
    model = vlm.VLM(dataclasses.replace(self.config, llm=llm))
    run = functools.partial(model.apply, method=method)
    return jax.jit(run)({"params": self.params}, *args)

  def take(self, *names: str) -> list[np.ndarray]:
    return [self.inputs[name] for name in names]


def _config(shapes: dict[str, tuple], image_size: int, llm: dict) -> VLMConfig:
  """Sizes from the parameters; `llm` tells what shapes cannot."""
  block = "img/Transformer/encoderblock"
  depth, width, mlp_dim = shapes[f"{block}/MlpBlock_0/Dense_0/kernel"]
  heads = shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][2]
  patch = shapes["img/embedding/kernel"][0]
  img = SiglipConfig(width, depth, mlp_dim, heads, patch, image_size)

  vocab_size, _ = shapes["llm/embedder/input_embedding"]
  depth, heads, head_dim, width = shapes["llm/layers/attn/attn_vec_einsum/w"]
  kv_einsum = shapes.get("llm/layers/attn/kv_einsum/w")
  scales = {
    "rsqrt_head_dim": head_dim**-0.5,
    "rsqrt_emb_per_head": (width // heads) ** -0.5,
  }
  gemma2 = "llm/layers/post_ffw_norm/scale" in shapes
  decoder = GemmaConfig(
    width,
    depth,
    mlp_dim=shapes["llm/layers/mlp/linear"][1],
    num_heads=heads,
    num_kv_heads=kv_einsum[2] if kv_einsum else heads,
    head_dim=head_dim,
    vocab_size=vocab_size,
    attn_softcap=llm.get("attn_logits_softcap") or 0.0,
    final_softcap=llm.get("final_logits_softcap") or 0.0,
    query_scale=scales[llm.get("query_pre_attn_norm") or "rsqrt_head_dim"],
    post_norms=gemma2,
    family="gemma2" if gemma2 else "gemma",
  )
  return VLMConfig(img, decoder)


def _under(folder: str, arrays: dict[str, np.ndarray]) -> dict:
  return {
    name.removeprefix(folder): array
    for name, array in arrays.items()
    if name.startswith(folder)
  }


def _stacked(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Per-layer arrays as one array per name, with the layers on axis 0."""
  layers: dict[str, list[np.ndarray]] = {}
  placed = [(*trees.split_layer(name), leaf) for name, leaf in flat.items()]
  for name, layer, leaf in sorted(placed, key=lambda each: each[1] or 0):
    layers.setdefault(name, []).append(leaf if layer is None else leaf[None])
  return {name: np.concatenate(leaves) for name, leaves in layers.items()}


@pytest.fixture(
  scope="module", params=FILES or [FOLDER], ids=lambda path: path.stem
)
def case(request) -> Case:
  assert request.param.suffix == ".npz", f"no *.npz in {FOLDER}"
  with np.load(request.param, allow_pickle=False) as file:
    arrays = dict(file)
  params = _stacked(_under("params/", arrays))
  inputs = _under("in/", arrays)
  meta = json.loads(str(arrays["meta/json"]))["case"]
  config = _config(
    {name: array.shape for name, array in params.items()},
    image_size=inputs["image"].shape[1],
    llm=meta.get("llm", {}),
  )
  return Case(inputs, _under("out/", arrays), config, trees.unflatten(params))


def prompt(model: vlm.VLM, image, text, mask_ar, mask_input):
  """[image | text], embedded, with its mask and which columns are real."""
  image_tokens = model.embed_images(image[:, None])
  x = jnp.concatenate([image_tokens, model.llm.embed(text)], axis=1)
  shift = ((0, 0), (image_tokens.shape[1], 0))
  real = jnp.pad(mask_input.astype(bool), shift, constant_values=True)
  return x, vlm.attention_mask(real, jnp.pad(mask_ar, shift)), real


def read(model: vlm.VLM, image, text, mask_ar) -> dict[str, jax.Array]:
  """The reference's training pass, in which padding is seen and counted."""
  x, mask, real = prompt(model, image, text, mask_ar, jnp.ones_like(text))
  columns = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
  num_image_tokens = real.shape[1] - text.shape[1]
  return {
    "img_stem": model.img.embed(image),
    "img_encoded": model.img.encode(image),
    "img_zimg": x[:, :num_image_tokens],
    "txt_emb": x[:, num_image_tokens:],
    "attn_mask": mask,
    "llm_pre_logits": model.llm(x, mask, columns),
  }


def score(model: vlm.VLM, image, text, mask_ar, mask_loss):
  """-log p of each next token; its mean over each answer, and over those."""
  weight = mask_loss[:, 1:]
  hidden = read(model, image, text[:, :-1], mask_ar[:, :-1])["llm_pre_logits"]
  log_p = jax.nn.log_softmax(model.logits(hidden[:, -weight.shape[1] :]))
  nll = -jnp.take_along_axis(log_p, text[:, 1:, None], axis=-1)[..., 0]
  per_example = (nll * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
  loss = per_example.mean()
  outputs = {"token_nll": nll, "loss_per_example": per_example, "loss": loss}
  return loss, outputs


def prefill(model: vlm.VLM, image, text, mask_ar, mask_input, steps):
  """Reads a prompt that is padded on the right.

  The padding stays in the cache, as a gap that nothing attends to.

  Returns:
    dtype[B, D] that predicts the first token, and the state to go on from.
  """
  x, mask, real = prompt(model, image, text, mask_ar, mask_input)
  room = ((0, 0), (0, steps.size))
  slots = jnp.pad(real, room)
  cache = gemma.KVCache.empty(model.config.llm, *slots.shape, "float32")
  mask = jnp.pad(mask, ((0, 0), *room))
  hidden, cache = model.llm.extend(x, mask, jnp.cumsum(real, 1) - 1, cache)
  length = real.sum(axis=1)
  last = jnp.take_along_axis(hidden, length[:, None, None] - 1, axis=1)
  return last[:, 0], vlm.DecodeState(cache, slots, length)


@pytest.fixture(scope="module")
def decoded(case) -> tuple[jax.Array, jax.Array]:
  """Greedy tokens int32[B, S], and the dtype[B, S, D] they were chosen by."""
  model, variables = vlm.VLM(case.config), {"params": case.params}
  steps = np.arange(case.outputs["decode/tokens"].shape[1])
  names = ("image", "decode_text", "decode_mask_ar", "decode_mask_input")

  def step(carry, _):
    hidden, state = carry
    logits = model.apply(variables, hidden, method="logits")
    token = logits.argmax(axis=-1)
    following, state = model.apply(
      variables, token[:, None], state, method="extend"
    )
    return (following[:, 0], state), (token, hidden)

  start = case.apply(prefill, *case.take(*names), steps)
  _, (tokens, hidden) = jax.lax.scan(step, start, steps)
  return tokens.T, hidden.swapaxes(0, 1)


@pytest.fixture(scope="module")
def scored(case) -> tuple[dict, dict]:
  """The outputs of `score`, and the gradient by stacked parameter names."""
  llm = dataclasses.replace(case.config.llm, final_softcap=0.0)
  model = vlm.VLM(dataclasses.replace(case.config, llm=llm))

  def loss(params, *inputs):
    return model.apply({"params": params}, *inputs, method=score)

  inputs = case.take("image", "text", "mask_ar", "mask_loss")
  gradient, outputs = jax.jit(jax.grad(loss, has_aux=True))(
    case.params, *inputs
  )
  return outputs, trees.flatten(jax.tree.map(np.asarray, gradient))


@pytest.fixture(scope="module")
def ours(case, scored, decoded) -> dict[str, jax.Array]:
  """What our model gives for every output in `TOLERANCE`, by its name."""
  llm, text = case.config.llm, case.take("image", "text", "mask_ar")
  outputs = case.apply(read, *text)
  sequence = outputs["llm_pre_logits"]
  tokens, steps = decoded
  uncapped, uncapped_steps = (
    case.apply("logits", hidden, final_softcap=0.0)
    for hidden in (sequence, steps)
  )
  # The 27B decoder's scale, which some files also have for other sizes.
  other = (llm.width // llm.num_heads) ** -0.5
  rescaled = case.apply(read, *text, query_scale=other)["llm_pre_logits"]
  rescaled = case.apply("logits", rescaled, final_softcap=0.0)
  image_tokens = case.config.num_image_tokens
  return {
    **outputs,
    **scored[0],
    "seq_logits": case.apply("logits", sequence),
    "text_logits": uncapped[:, image_tokens:],
    "alt_rsqrt_emb_per_head/text_logits": rescaled[:, image_tokens:],
    "decode/tokens": tokens,
    "decode/logits": jnp.concatenate(
      [uncapped_steps[:, :1], case.apply("logits", steps)[:, 1:]], axis=1
    ),
    "decode_nocap/logits": uncapped_steps,
  }


def of_parameter(gradients, name: str) -> np.ndarray:
  """The gradient under a reference's name, of one layer or of all."""
  stacked, layer = trees.split_layer(name)
  return gradients[stacked] if layer is None else gradients[stacked][layer]


def norm(gradient: np.ndarray) -> float:
  return np.linalg.norm(gradient.astype(np.float64))


def test_golden_folder_has_files():
  assert FILES, f"no *.npz in {FOLDER}"


def test_file_is_complete(case):
  assert REQUIRED - set(case.outputs) == set()


def test_parameters_are_exactly_ours(case):
  init = functools.partial(vlm.init_params, case.config)
  ours = trees.flatten(jax.eval_shape(init, jax.random.key(0)))
  theirs = trees.flatten(case.params)
  assert {name: leaf.shape for name, leaf in theirs.items()} == {
    name: leaf.shape for name, leaf in ours.items()
  }


def test_outputs(case, ours):
  """All that the file has; a failure lists what differs, and by how much."""
  names = [name for name in TOLERANCE if name in case.outputs]
  shapes = {name: case.outputs[name].shape for name in names}
  assert {name: ours[name].shape for name in names} == shapes
  difference = {
    name: float(np.abs(1.0 * ours[name] - case.outputs[name]).max())
    for name in names
  }
  wrong = {n: d for n, d in difference.items() if not d <= TOLERANCE[n]}
  assert wrong == {}


def test_gradients(case, scored):
  """Norms, one per layer or one per stack as the file has them, and some whole.

  Some gradients are zero but for rounding (a key's bias shifts all logits of a
  query alike), hence the floor.
  """
  gradients, outputs = scored[1], case.outputs
  floor = GRADIENT_FLOOR * outputs["grad_norm_global"]
  norms = _under("grad_norm/", outputs)
  assert {trees.split_layer(name)[0] for name in norms} == set(gradients)
  difference = {}
  for name, value in norms.items():
    error = abs(norm(of_parameter(gradients, name)) - value)
    difference[f"grad_norm/{name}"] = error / max(value, floor)
  for name, value in _under("grad/", outputs).items():
    error = np.abs(of_parameter(gradients, name) - value).max()
    difference[f"grad/{name}"] = error / max(np.abs(value).max(), floor)
  total = np.linalg.norm([norm(g) for g in gradients.values()])
  difference["global"] = abs(total / outputs["grad_norm_global"] - 1)
  wrong = {n: d for n, d in difference.items() if not d <= GRADIENT_TOLERANCE}
  assert wrong == {}
