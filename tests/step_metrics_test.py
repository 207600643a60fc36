"""The numbers of a step, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from rt2_jax import step_metrics
from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.action_tokens import RareTokens
from rt2_jax.batch import Batch

TOKENIZER = ActionTokenizer(RT2, RareTokens(tuple(range(40, 296))))
OTHER = ActionTokenizer(
  RT2.with_bounds({"dx": (-0.5, 0.5)}), RareTokens(tuple(range(40, 296)))
)
VOCAB = 304


def answers(*sources: int) -> Batch:
  """Random actions of these sources; nobody looks at the rest of a batch."""
  rng = np.random.default_rng(0)
  rows = len(sources)
  suffix = np.zeros((rows, 9), np.int32)
  suffix[:, :8] = 40 + rng.integers(0, np.array(TOKENIZER.sizes), (rows, 8))
  suffix[:, 8] = 1
  return Batch(
    **dict.fromkeys(("image", "image_size", "prefix", "mask_input")),
    suffix=suffix,
    mask_loss=np.ones((rows, 9), np.float32),
    source=np.array(sources, np.int32),
  )


def test_metrics_by_hand():
  batch = answers(0, 1, 1, 1)
  predicted = np.array(batch.suffix)
  predicted[0, 0] = 81 - predicted[0, 0]  # terminate: 40 <-> 41
  predicted[1, 1] += 1 if predicted[1, 1] < 295 else -1  # dx: next bin
  predicted[3, 8] = 7  # eos is no dimension
  logits = 9.0 * jax.nn.one_hot(predicted, VOCAB)
  loss = jnp.arange(4.0)
  metrics = step_metrics.per_source(loss, logits, batch, (TOKENIZER, OTHER))
  np.testing.assert_array_equal(metrics["examples"], [1, 3])
  np.testing.assert_array_equal(metrics["loss"], [0, 6])
  np.testing.assert_array_equal(metrics["correct/0"], [[0] + [1] * 7])
  np.testing.assert_array_equal(metrics["correct/1"], [[3, 2] + [3] * 6])
  np.testing.assert_allclose(metrics["l1/0"], [[1] + [0] * 7], atol=1e-6)
  # One bin of ±0.5 m.
  np.testing.assert_allclose(
    metrics["l1/1"], [[0, 1 / 256] + [0] * 6], atol=1e-6
  )


def test_metrics_are_of_the_action_wherever_a_plan_ends():
  """Plans of 0 to 5 tokens move the answers' last columns, and no figure."""
  batch = answers(0, 1, 1, 0, 1, 0)
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(6, 9, VOCAB)).astype(np.float32)
  loss = jnp.zeros(6)
  plain = step_metrics.per_source(loss, logits, batch, (TOKENIZER, OTHER))
  suffix = rng.integers(2, VOCAB, (6, 14)).astype(np.int32)
  longer = rng.normal(size=(6, 14, VOCAB)).astype(np.float32)
  for b in range(6):
    suffix[b, b : b + 9] = batch.suffix[b]
    longer[b, b : b + 9] = logits[b]
  mask_loss = np.arange(14) < np.arange(9, 15)[:, None]
  planned = step_metrics.per_source(
    loss,
    longer,
    batch._replace(suffix=suffix, mask_loss=mask_loss.astype(np.float32)),
    (TOKENIZER, OTHER),
  )
  for name in ("correct/0", "correct/1", "l1/0", "l1/1"):
    np.testing.assert_allclose(planned[name], plain[name], rtol=1e-6)


def test_a_word_that_is_no_action_counts_as_wrong_but_has_a_distance():
  batch = answers(0)
  logits = np.zeros((1, 9, VOCAB), np.float32)
  logits[..., 5] = 9.0  # not an action token
  logits[0, np.arange(8), batch.suffix[0, :8]] = 1.0  # best valid one
  metrics = step_metrics.per_source(
    jnp.zeros(1), jnp.asarray(logits), batch, (TOKENIZER, OTHER)
  )
  np.testing.assert_array_equal(metrics["correct/0"], np.zeros((1, 8)))
  np.testing.assert_allclose(metrics["l1/0"], np.zeros((1, 8)), atol=1e-6)
