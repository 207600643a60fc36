"""A closer look at one action: what else was likely, and where it looked.

Shapes: H actions of a chunk, D dimensions, F images, G x G patches of each.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from rt2_jax import sharding
from rt2_jax.action_tokens import RareTokens
from rt2_jax.actions import NUM_BINS
from rt2_jax.decode import Prompts
from rt2_jax.errors import UserError
from rt2_jax.models.layers import INTERMEDIATES
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import VLM
from rt2_jax.observation import Observation, to_batch
from rt2_jax.policy import Policy, make_prompts


class CloserLook(NamedTuple):
  """One chunk of actions as the model chose it.

  Attributes:
    actions: float32[H, D] in physical units, the likeliest.
    probabilities: float32[H, D, NUM_BINS], of the bins of each number, given
      the numbers before it. 0 past the classes of a discrete dimension.
    attention: float32[H, D, F, G, G], what the choice of each number reads of
      each patch, as a mean over the decoder's heads and layers. The rest, up to
      a sum of 1, goes to the instruction and to earlier numbers.
  """

  actions: np.ndarray
  probabilities: np.ndarray
  attention: np.ndarray


def look_closer(policy: Policy, observation: Observation) -> CloserLook:
  """Acts once, and shows the probabilities and the attention behind it.

  Raises:
    UserError: a policy that plans first, or that writes numbers digit by digit,
      and as `Policy.decide`.
  """
  space, tokenizer = policy.action_space, policy.action_tokenizer
  if policy.prompt.plan_length or not isinstance(tokenizer.route, RareTokens):
    raise UserError(
      "got a policy that plans first or writes digits, expected one token for "
      "each number of an action; look at a policy that was trained with "
      "config.prompt.plan_length = 0 and rare tokens"
    )
  seen = to_batch([observation], policy.observation)
  ids = policy.token_ids(seen)
  model, grammar = policy.model, tokenizer.grammar
  several_cameras = policy.observation.several_cameras
  with sharding.scope(policy.mesh):
    columns = seen.image, seen.image_size, *policy.prompts(seen)
    prompts = make_prompts(model, several_cameras, *columns)
    logits, attention = _choices(
      model, policy.params, prompts, ids, grammar.ids
    )
  valid = np.where(grammar.allowed, logits[0], -np.inf)
  side = model.img.image_size // model.img.patch_size
  chunk = tokenizer.horizon, len(space)
  return CloserLook(
    tokenizer.decode(ids)[0],
    special.softmax(valid, -1).reshape(*chunk, NUM_BINS),
    np.reshape(attention, (*chunk, model.num_images, side, side)),
  )


@functools.partial(jax.jit, static_argnums=0)
def _choices(
  model: VLMConfig,
  params: dict,
  prompts: Prompts,
  ids: jax.Array,
  candidates: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Scores the candidates for each token of known actions.

  Args:
    model: sizes of the model.
    params: its parameters.
    prompts: what B actions answer.
    ids: int32[B, L], the actions.
    candidates: int32[K], the tokens that actions are made of.

  Returns:
    Logits float32[B, L, K], and attention float32[B, L, N] to image tokens.
  """
  vlm, variables, length = VLM(model), {"params": params}, ids.shape[1]
  (hidden, _), kept = vlm.apply(
    variables,
    *prompts,
    draft=ids[:, :-1],
    answer_len=length - 1,
    method="prefill",
    mutable=[INTERMEDIATES],
  )
  logits = vlm.apply(variables, hidden, candidates, method="logits_of")
  # Layers, B, heads, their groups, T, S: an array of each layer, or of all.
  weights = jnp.concatenate(
    [jnp.reshape(x, (-1, *x.shape[-5:])) for x in jax.tree.leaves(kept)]
  )
  image_tokens = model.num_images * model.img.num_tokens
  return logits, weights[..., -length:, :image_tokens].mean((0, 2, 3))
