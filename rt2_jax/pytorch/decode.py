"""Answering in PyTorch: token by token, the same tokens as `decode.py`.

Shapes: B examples, C columns that were read, L tokens of an action, K candidate
tokens, E tokens that end a plan, N tokens of a plan with its end, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import transformers

from rt2_jax.action_tokens import Grammar
from rt2_jax.tokenizer import EOS, PAD

Model = transformers.PaliGemmaForConditionalGeneration


class Context(NamedTuple):
  """What the decoder has read.

  Attributes:
    hidden: dtype[B, D], which predicts the next token.
    cache: keys and values; grows in place.
    real: int64[B, C], 1 where an example may look.
    position: int64[B, 1], of the last real token.
    finite: bool[B], whether all logits of the tokens so far were finite.
  """

  hidden: torch.Tensor
  cache: transformers.Cache
  real: torch.Tensor
  position: torch.Tensor
  finite: torch.Tensor

  def check(self, logits: torch.Tensor) -> Context:
    """The same with what logits float32[B, K], before any mask, are."""
    return self._replace(finite=self.finite & logits.isfinite().all(-1))


def vocab_size(model: Model) -> int:
  """Rows of the token table that are tokens; the rest is padding."""
  return model.config.image_token_id


def prefill(
  model: Model, inputs: Mapping[str, torch.Tensor], pixels: torch.Tensor
) -> Context:
  """Reads images and questions.

  Args:
    model: in PyTorch.
    inputs: what `TorchPolicy.inputs` returns.
    pixels: what `TorchPolicy.prepare` returns.
  """
  cache = transformers.DynamicCache(config=model.config)
  hidden = _read(model, cache, **inputs, pixel_values=pixels)
  position = inputs["position_ids"][:, -1:]
  finite = torch.ones_like(position[:, 0], dtype=torch.bool)
  return Context(hidden, cache, inputs["attention_mask"], position, finite)


def decode_actions(
  model: Model, context: Context, grammar: Grammar
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes the most likely of all valid actions, greedily.

  Returns:
    int32[B, L]; and bool[B], whether all logits were finite, those of the
    context's plans among them.
  """
  device = context.hidden.device
  ids = torch.as_tensor(grammar.ids, device=device).long()
  allowed = torch.as_tensor(grammar.allowed, device=device)
  next_state = torch.as_tensor(grammar.next_state, device=device).long()
  rows = _table(model)[ids]
  place = torch.zeros_like(context.position[:, 0])
  everyone = torch.ones_like(place, dtype=torch.bool)
  tokens = []
  for _ in range(grammar.length):
    if tokens:
      context = _extend(model, context, tokens[-1], everyone)
    logits = _logits(model, context.hidden, rows)
    context = context.check(logits)
    best = logits.masked_fill(~allowed[place], -torch.inf).argmax(-1)
    place = next_state[place, best]
    tokens.append(ids[best])
  return _stacked(tokens), context.finite.cpu().numpy()


def decode_plans(
  model: Model, context: Context, plan_end: Sequence[int], plan_length: int
) -> tuple[np.ndarray, Context]:
  """Free text until all examples have ended it, see `decode._plan`.

  Args:
    model: in PyTorch.
    context: what the plans follow.
    plan_end: E tokens, after which a plan ends and an action begins.
    plan_length: most tokens before them. What is missing of them is forced
      upon a longer plan, and upon one after which the answer would end.

  Returns:
    Plans int32[B, N'], each with its end and padded on the right, where N' is
    the longest one's size; and what the actions follow.
  """
  rows = _table(model)[: vocab_size(model)]
  end = torch.tensor(plan_end, device=context.hidden.device)
  recent = end.new_full((len(context.hidden), len(end)), -1)
  most = end.new_full((len(recent),), plan_length)
  tokens = []
  while not (recent == end).all():
    written = _written(recent, end)
    is_open = written < len(end)
    logits = _logits(model, context.hidden, rows)
    context = context.check(logits)
    best = logits.argmax(-1)
    i = len(tokens)
    most = torch.where(best == EOS, most.clamp(max=i), most)
    # Of no meaning where the end is written, and replaced below.
    forced = end[written.clamp(max=len(end) - 1)]
    token = torch.where(i >= most, forced, best)
    token = torch.where(is_open, token, PAD)
    tokens.append(token)
    context = _extend(model, context, token, is_open)
    shifted = torch.cat([recent[:, 1:], token[:, None]], 1)
    recent = torch.where(is_open[:, None], shifted, recent)
  return _stacked(tokens), context


def _written(recent: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
  """int64[B, E], the last tokens -> int64[B], how many begin `end`."""
  sizes = range(1, len(end) + 1)
  fits = [n * (recent[:, -n:] == end[:n]).all(1) for n in sizes]
  return torch.stack(fits).amax(0)


def _extend(
  model: Model, context: Context, token: torch.Tensor, takes: torch.Tensor
) -> Context:
  """One token int64[B] further, in the examples bool[B] that take it.

  It fills a slot in everyone's cache, where the others never look.
  """
  real = torch.cat([context.real, takes[:, None].long()], 1)
  position = context.position + takes[:, None]
  hidden = _read(
    model,
    context.cache,
    input_ids=token[:, None],
    attention_mask=real,
    position_ids=position,
  )
  hidden = torch.where(takes[:, None], hidden, context.hidden)
  return context._replace(hidden=hidden, real=real, position=position)


def _read(model: Model, cache: transformers.Cache, **inputs) -> torch.Tensor:
  """dtype[B, D], which predicts what follows the inputs."""
  outputs = model.model(**inputs, past_key_values=cache, use_cache=True)
  return outputs.last_hidden_state[:, -1]


def _table(model: Model) -> torch.Tensor:
  """dtype[V, D]: read on the way in, and multiplied by on the way out."""
  return model.get_input_embeddings().weight


def _logits(
  model: Model, hidden: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
  """dtype[B, D] and dtype[K, D] -> float32[B, K], with the final softcap."""
  logits = (hidden @ rows.T).float()
  cap = getattr(model.config.text_config, "final_logit_softcapping", None)
  return cap * torch.tanh(logits / cap) if cap else logits


def _stacked(tokens: list[torch.Tensor]) -> np.ndarray:
  """Tokens int64[B] -> int32[B, their number]."""
  return torch.stack(tokens, 1).cpu().numpy().astype(np.int32)
