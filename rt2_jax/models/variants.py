"""The sizes a model comes in: one frozen config per part, and named tables.

A config is passed whole to its module. The names follow the public PaliGemma
checkpoints where those exist; `gemma_tiny` and `tiny/*` are a few million
parameters, to train from scratch on a laptop with 64 x 64 images.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

from rt2_jax.errors import UserError, unknown_name
from rt2_jax.models.lora_config import OFF, LoraConfig
from rt2_jax.ranges import at_least, more_than

# Of decoders: model_type in transformers -> what people call it.
FAMILIES: Mapping[str, str] = MappingProxyType(
  {"gemma": "Gemma 1", "gemma2": "Gemma 2"}
)


# Marks of products with weights, see `remat.py`.
UNGATED, GATED = "not of a gated MLP", "of a gated MLP"

# Rematerialization: which products with weights a layer keeps for the backward
# pass, beside its input; None keeps everything. "dots" costs memory and saves
# "full" a fifth of the arithmetic. "ungated" leaves out the decoder's MLP: of
# what "dots" keeps and saves, half in the 55B and more in a 3B.
REMAT: Mapping[str, tuple[str, ...] | None] = MappingProxyType(
  {"none": None, "full": (), "ungated": (UNGATED,), "dots": (UNGATED, GATED)}
)


def _check_remat(policy: str):
  if policy not in REMAT:
    raise unknown_name("remat policy", str(policy), REMAT)


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
  """A SigLIP vision transformer.

  Attributes:
    width: size of a token.
    depth: number of layers.
    mlp_dim: hidden size of the MLP.
    num_heads: attention heads, each of size width / num_heads.
    patch_size: side of a square patch, in pixels.
    image_size: side of the square input image, in pixels.
    dtype: what matrix products compute in; parameters are float32.
    remat: what a layer keeps for the backward pass, see `REMAT`.
    lora: which matrices have an adapter.

  Raises:
    UserError: the image is no whole number of patches, or the heads do not
      divide the width.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: int = 14
  image_size: int = 224
  dtype: str = "float32"
  remat: str = "none"
  lora: LoraConfig = OFF

  def __post_init__(self):
    if self.image_size <= 0 or self.image_size % self.patch_size:
      lower = self.image_size // self.patch_size * self.patch_size
      raise UserError(
        f"got image_size {self.image_size}, expected a positive multiple of "
        f"the patch size {self.patch_size}, such as "
        f"{max(lower, self.patch_size)} or {lower + self.patch_size} "
        "(PaliGemma uses 224, 448 and 896)"
      )
    if self.width % self.num_heads:
      raise UserError(
        f"got num_heads {self.num_heads}, expected a divisor of width "
        f"{self.width}"
      )

    _check_remat(self.remat)

  @property
  def num_tokens(self) -> int:
    """Tokens per image, one per patch."""
    return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
  """A Gemma decoder.

  Attributes:
    width: size of a token.
    depth: number of layers.
    mlp_dim: hidden size of the gated MLP.
    num_heads: query heads.
    num_kv_heads: key and value heads, a divisor of num_heads.
    head_dim: size of a head; need not be width / num_heads.
    vocab_size: rows of the token table, which is also the output layer.
    attn_softcap: attention logits stay within ± this; 0 is no cap.
    final_softcap: output logits stay within ± this; 0 is no cap.
    query_scale: factor on the queries; None is head_dim**-0.5.
    post_norms: also normalise what a sublayer adds to the residual.
    family: how transformers calls it, one of `FAMILIES`; changes no number.
    dtype: what matrix products compute in; parameters are float32.
    remat: what a layer keeps for the backward pass, see `REMAT`.
    lora: which matrices have an adapter.

  Raises:
    UserError: num_kv_heads does not divide num_heads, or an unknown family.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  vocab_size: int = 257152
  attn_softcap: float = 0.0
  final_softcap: float = 0.0
  query_scale: float | None = None
  post_norms: bool = False
  family: str = "gemma"
  dtype: str = "float32"
  remat: str = "none"
  lora: LoraConfig = OFF

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f"got num_kv_heads {self.num_kv_heads}, expected a divisor of "
        f"num_heads {self.num_heads}"
      )
    if self.family not in FAMILIES:
      raise unknown_name("decoder family", self.family, FAMILIES)
    _check_remat(self.remat)

  @property
  def query_factor(self) -> float:
    """Returns the factor on the queries, its default resolved."""
    if self.query_scale is None:
      return self.head_dim**-0.5
    return self.query_scale


@dataclasses.dataclass(frozen=True)
class VLMConfig:
  """An encoder, a decoder, and F, the images of one example."""

  img: SiglipConfig
  llm: GemmaConfig
  num_images: int = 1

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> "VLMConfig":
    """Inverts `dataclasses.asdict`, for a checkpoint's description."""

    def part(build, fields):
      adapters = dict(fields.get("lora", {}))
      adapters["targets"] = tuple(adapters.get("targets", ()))
      return build(**dict(fields) | {"lora": LoraConfig(**adapters)})

    img, llm = part(SiglipConfig, data["img"]), part(GemmaConfig, data["llm"])
    return cls(img, llm, data["num_images"])

  @property
  def adapted(self) -> bool:
    """Tells whether some matrices have LoRA adapters."""
    return self.img.lora.rank > 0 or self.llm.lora.rank > 0

  def without_adapters(self) -> "VLMConfig":
    """Returns the base of a model with LoRA adapters."""
    img, llm = (
      dataclasses.replace(part, lora=OFF) for part in (self.img, self.llm)
    )
    return dataclasses.replace(self, img=img, llm=llm)

  @property
  def num_image_tokens(self) -> int:
    """Positions that the images of one example take, before any text."""
    return self.num_images * self.img.num_tokens


# Width, depth, mlp_dim, num_heads, patch_size. So400m is PaliGemma's encoder;
# G, e and 22B are those of PaLI, PaLI-E (ViT-4B of PaLM-E) and PaLI-X.
ENCODERS: Mapping[str, SiglipConfig] = MappingProxyType(
  {
    "micro/16": SiglipConfig(64, 4, 192, 2, patch_size=16),
    "mini/16": SiglipConfig(128, 4, 384, 4, patch_size=16),
    "tiny/16": SiglipConfig(192, 4, 768, 4, patch_size=16),
    "tiny/8": SiglipConfig(192, 4, 768, 4, patch_size=8),
    "So400m/14": SiglipConfig(1152, 27, 4304, 16),
    "G/14": SiglipConfig(1664, 48, 8192, 16),
    "e/14": SiglipConfig(1792, 56, 15360, 16),
    "22B/14": SiglipConfig(6144, 48, 24576, 48),
  }
)


def _gemma2(*sizes: int, **overrides) -> GemmaConfig:
  caps = {"attn_softcap": 50.0, "final_softcap": 30.0}
  kind = {"post_norms": True, "family": "gemma2"}
  return GemmaConfig(*sizes, **caps, **kind, **overrides)


# Width, depth, mlp_dim, num_heads, num_kv_heads, head_dim. `ul2_*` have the
# widths of the PaLI family's language models; as decoders without a second
# stack, `ul2_3b` has more layers to hold as many parameters.
DECODERS: Mapping[str, GemmaConfig] = MappingProxyType(
  {
    "gemma_micro": GemmaConfig(64, 4, 192, 2, 1, 32),
    "gemma_mini": GemmaConfig(128, 4, 384, 4, 1, 32),
    "gemma_tiny": GemmaConfig(256, 4, 1024, 4, 1, 64),
    "gemma2_tiny": _gemma2(256, 4, 1024, 4, 2, 64),
    "gemma_2b": GemmaConfig(2048, 18, 16384, 8, 1, 256),
    "gemma_7b": GemmaConfig(3072, 28, 24576, 16, 16, 256),
    "gemma2_2b": _gemma2(2304, 26, 9216, 8, 4, 256),
    "gemma2_9b": _gemma2(3584, 42, 14336, 16, 8, 256),
    # The one size whose queries are scaled by width / heads, not head_dim.
    "gemma2_27b": _gemma2(4608, 46, 36864, 32, 16, 128, query_scale=144**-0.5),
    "ul2_3b": GemmaConfig(2048, 54, 5120, 32, 32, 64),
    "ul2_32b": GemmaConfig(5120, 50, 36864, 32, 16, 128),
  }
)


def vlm(
  img: str = "So400m/14",
  llm: str = "gemma_2b",
  *,
  image_size: Annotated[int, at_least(1)] = 224,
  vocab_size: Annotated[int, at_least(1)] = 257152,
  dtype: str = "float32",
  remat: str = "none",
  final_softcap: Annotated[float | None, at_least(0)] = None,
  lora_rank: Annotated[int, at_least(0)] = 0,
  lora_alpha: Annotated[float, more_than(0)] = 16.0,
  lora_targets: Sequence[str] = (),
) -> VLMConfig:
  """Builds a model by the names of its parts; by default PaliGemma 3B.

  Args:
    img: a key of `ENCODERS`.
    llm: a key of `DECODERS`.
    image_size: side of the square images, in pixels.
    vocab_size: rows of the token table.
    dtype: what matrix products compute in; parameters are float32.
    remat: what a layer keeps for the backward pass, see `REMAT`.
    final_softcap: bound on the output logits, 0 for none; None keeps the
      decoder's own.
    lora_rank: of the adapters, see `lora_config.LoraConfig`; 0 makes none.
    lora_alpha: adapters are scaled by lora_alpha / lora_rank.
    lora_targets: patterns of the names of matrices that get one.

  Raises:
    UserError: an unknown name, or an image that is no whole number of patches.
  """
  if img not in ENCODERS:
    raise unknown_name("encoder", img, ENCODERS)
  if llm not in DECODERS:
    raise unknown_name("decoder", llm, DECODERS)
  both = {
    "dtype": dtype,
    "remat": remat,
    "lora": LoraConfig(lora_rank, lora_alpha, tuple(lora_targets)),
  }
  encoder = dataclasses.replace(ENCODERS[img], image_size=image_size, **both)
  decoder = dataclasses.replace(DECODERS[llm], vocab_size=vocab_size, **both)
  if final_softcap is not None:
    decoder = dataclasses.replace(decoder, final_softcap=final_softcap)
  return VLMConfig(encoder, decoder)
