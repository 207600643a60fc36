"""Masked decoding in PyTorch: stock `generate`, the same tokens as `decode.py`.

A logits processor walks the action grammar, so that only valid answers compete.

Shapes: B robots, C prompt positions, V vocabulary with its padding, K candidate
tokens, L tokens of an action, E tokens that end a plan, N tokens of a plan with
its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import transformers

from rt2_jax.action_tokens import Grammar
from rt2_jax.tokenizer import EOS, PAD

Model = transformers.PaliGemmaForConditionalGeneration


def vocab_size(model: Model) -> int:
  """Counts the token table's rows that are tokens; the rest is padding."""
  return model.config.image_token_id


def decode(
  model: Model,
  inputs: Mapping[str, torch.Tensor],
  pixels: torch.Tensor,
  grammar: Grammar,
  plan_end: Sequence[int] = (),
  plan_length: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Decodes plans, if any, and the likeliest valid actions, greedily.

  Args:
    model: in PyTorch.
    inputs: from `TorchPolicy.inputs`.
    pixels: from `TorchPolicy.prepare`.
    grammar: which token of an action may follow which.
    plan_end: E tokens, after which a plan ends and an action begins; none
      without plans.
    plan_length: most tokens before them.

  Returns:
    Plans int32[B, N], each with its end and padded on the right; actions
    int32[B, L]; and bool[B], whether all logits were finite.
  """
  prompt = dict(inputs)
  del prompt["position_ids"]  # `generate` counts real tokens likewise
  batch, size = prompt["input_ids"].shape
  walk = AnswerGrammar(model, batch, grammar, plan_end, plan_length)
  longest = plan_length + len(plan_end)
  found = model.generate(
    **prompt,
    pixel_values=pixels,
    logits_processor=[walk],
    max_new_tokens=longest + grammar.length,
    do_sample=False,
    num_beams=1,
    eos_token_id=EOS,
    pad_token_id=EOS,
  )
  answers = np.full((batch, longest + grammar.length), EOS, np.int32)
  answers[:, : found.shape[1] - size] = found[:, size:].cpu().numpy()
  starts = walk.action_starts.cpu().numpy()[:, None]
  plan = np.arange(longest)
  plans = np.where(plan < starts, answers[:, :longest], PAD)
  action = starts + np.arange(grammar.length)
  actions = np.take_along_axis(answers, action, 1)
  return plans.astype(np.int32), actions, walk.finite.cpu().numpy()


def answer(
  model: Model,
  inputs: Mapping[str, torch.Tensor],
  pixels: torch.Tensor,
  longest: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes free text, greedily.

  Args:
    model: in PyTorch.
    inputs: from `TorchPolicy.inputs`.
    pixels: from `TorchPolicy.prepare`.
    longest: N, most tokens of an answer.

  Returns:
    int32[B, N], eos after a shorter text; and bool[B], whether all logits were
    finite.
  """
  prompt = dict(inputs)
  del prompt["position_ids"]  # `generate` counts real tokens likewise
  batch, size = prompt["input_ids"].shape
  text = TextOnly(model, batch)
  found = model.generate(
    **prompt,
    pixel_values=pixels,
    logits_processor=[text],
    max_new_tokens=longest,
    do_sample=False,
    num_beams=1,
    eos_token_id=EOS,
    pad_token_id=EOS,
  )
  answers = np.full((batch, longest), EOS, np.int32)
  answers[:, : found.shape[1] - size] = found[:, size:].cpu().numpy()
  return answers, text.finite.cpu().numpy()


class TextOnly(transformers.LogitsProcessor):
  """Masks the token table's padding.

  Attributes:
    finite: bool[B], whether all logits so far were, before the mask.
  """

  def __init__(self, model: Model, batch: int):
    self._vocab_size = vocab_size(model)
    self.finite = torch.ones(batch, dtype=torch.bool, device=model.device)

  def __call__(
    self, input_ids: torch.Tensor, scores: torch.Tensor
  ) -> torch.Tensor:
    """Masks the next token's logits, float32[B, V]."""
    self.finite &= scores[:, : self._vocab_size].isfinite().all(-1)
    tokens = torch.arange(scores.shape[1], device=scores.device)
    return scores.masked_fill(tokens >= self._vocab_size, -torch.inf)


class AnswerGrammar(transformers.LogitsProcessor):
  """Masks all tokens that may not come next in an answer.

  An answer is a plan with its end, where there is one, an action, and eos. One
  object follows one batch through one call of `generate`.

  Attributes:
    finite: bool[B], whether all logits so far were, before any mask.
    action_starts: int64[B], tokens of each plan with its end, so far.
  """

  def __init__(
    self,
    model: Model,
    batch: int,
    grammar: Grammar,
    plan_end: Sequence[int],
    plan_length: int,
  ):
    def tensor(values):
      return torch.as_tensor(values, dtype=torch.long, device=model.device)

    self._vocab_size = vocab_size(model)
    self._length = grammar.length
    self._ids, self._next_state = map(tensor, (grammar.ids, grammar.next_state))
    self._allowed = tensor(grammar.allowed).bool()
    # The column of each token that occurs in actions.
    self._columns = tensor(np.zeros(self._vocab_size))
    self._columns[self._ids] = torch.arange(len(self._ids), device=model.device)
    self._end = tensor(plan_end)
    self._recent = tensor(np.full((batch, len(plan_end)), -1))
    self._longest_plan = tensor(np.full(batch, plan_length))
    # Where each robot stands: tokens of its plan, of its action, the state.
    self.action_starts = tensor(np.zeros(batch))
    self._taken = tensor(np.zeros(batch))
    self._state = tensor(np.zeros(batch))
    self.finite = tensor(np.ones(batch)).bool()
    self._begun = False

  def __call__(
    self, input_ids: torch.Tensor, scores: torch.Tensor
  ) -> torch.Tensor:
    """Masks the next token's logits.

    Args:
      input_ids: int64[B, C'], the prompt and the answer so far.
      scores: float32[B, V].
    """
    if self._begun:
      self._advance(input_ids[:, -1])
    self._begun = True
    self.finite &= scores[:, : self._vocab_size].isfinite().all(-1)
    may = torch.zeros_like(scores, dtype=torch.bool)
    may[:, self._ids] = self._allowed[self._state]
    tokens = torch.arange(scores.shape[1], device=scores.device)
    complete = self._taken == self._length
    may = torch.where(complete[:, None], tokens == EOS, may)
    if len(self._end):
      planned = self._may_plan(tokens, scores)
      may = torch.where(self._planning()[:, None], planned, may)
    return scores.masked_fill(~may, -torch.inf)

  def _planning(self) -> torch.Tensor:
    """Tells whose plan has not ended, bool[B]."""
    return (self._recent != self._end).any(1)

  def _may_plan(
    self, tokens: torch.Tensor, scores: torch.Tensor
  ) -> torch.Tensor:
    """Tells which tokens may come next in a plan, bool[B, V].

    All may, until a plan has its full length or predicts eos; from then on the
    end's remaining tokens are forced.
    """
    best = scores[:, : self._vocab_size].argmax(-1)
    now = torch.minimum(self._longest_plan, self.action_starts)
    self._longest_plan = torch.where(best == EOS, now, self._longest_plan)
    sizes = range(1, len(self._end) + 1)
    begun = [n * (self._recent[:, -n:] == self._end[:n]).all(1) for n in sizes]
    # Past the end, where no plan is masked, any token does.
    following = torch.stack(begun).amax(0).clamp(max=len(self._end) - 1)
    forced = self.action_starts >= self._longest_plan
    is_end = tokens == self._end[following][:, None]
    return torch.where(forced[:, None], is_end, tokens < self._vocab_size)

  def _advance(self, token: torch.Tensor):
    """Moves each robot past its token, int64[B]."""
    planning = self._planning()
    acting = ~planning & (self._taken < self._length)
    shifted = torch.cat([self._recent[:, 1:], token[:, None]], 1)
    shifted = shifted[:, : len(self._end)]  # without plans there is no end
    self._recent = torch.where(planning[:, None], shifted, self._recent)
    self.action_starts += planning
    following = self._next_state[self._state, self._columns[token]]
    self._state = torch.where(acting, following, self._state)
    self._taken += acting
