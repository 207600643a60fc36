"""Scores of answers by hand, and a policy that is asked what it would say."""

import jax
import numpy as np
import pytest

from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.evaluators import vqa
from rt2_jax.input_pipeline.web import WebExample
from rt2_jax.models import variants
from rt2_jax.models.vlm import init_params
from rt2_jax.policy import Policy
from rt2_jax.prompt import Prompt


@pytest.mark.parametrize(
  ("answer", "right", "score"),
  [
    ("a Cat.", ("a cat",), 1.0),
    ("dog", ("a cat", "dog"), 1.0),
    ("dogs", ("dog",), 0.0),
    ("1.5", ("15",), 0.0),
    ("-5", ("5",), 0.0),
    ("It is 1,000.", ("it is 1000",), 1.0),
    ("a T-shirt, no. 3", ("a tshirt no 3",), 1.0),
    # Punctuation may be all that there is to say.
    ("-", ("+",), 0.0),
    ("", ("?",), 0.0),
    (" ?", ("?",), 1.0),
    # VQA v2: three of ten people.
    ("red", ("red",) * 2 + ("blue",) * 8, 2 / 3),
    ("red", ("red",) * 3 + ("blue",) * 7, 1.0),
    # Boxes: half of the union must be common.
    ("<loc0000><loc0000><loc0100><loc0100>", ("<loc0000>" * 4,), 0.0),
    (
      "<loc0000><loc0000><loc0100><loc0080> cat",
      ("<loc0000><loc0000><loc0100><loc0100> cat",),
      1.0,
    ),
    (
      "<loc0000><loc0000><loc0100><loc0040>",
      ("<loc0000><loc0000><loc0100><loc0100>",),
      0.0,
    ),
    ("cat", ("<loc0000><loc0000><loc0100><loc0100> cat",), 0.0),
  ],
)
def test_scores(answer, right, score):
  assert vqa.score(answer, right) == pytest.approx(score)


@pytest.fixture(scope="module")
def policy(tokenizer):
  model = variants.vlm(
    "tiny/16", "gemma_tiny", image_size=32, vocab_size=tokenizer.vocab_size
  )
  return Policy(
    model,
    init_params(model, jax.random.key(0)),
    Prompt(tokenizer, 24, 9),
    ActionTokenizer(RT2, tokenizer.action_route("rare")),
  )


def test_a_policy_against_its_own_answers(policy):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
  sizes = np.full((4, 1, 2), 32, np.int32)
  questions = [f"Answer in en: what is {i}?" for i in range(4)]
  answers = policy.answer(images, questions, sizes)
  assert all(isinstance(answer, str) for answer in answers)
  examples = [
    WebExample(b"", question, (text,), task, "en")
    for question, text, task in zip(
      questions, answers, ("vqa", "vqa", "caption", "vqa"), strict=True
    )
  ]
  metrics = vqa.evaluate(policy, [(images, sizes, examples)])
  assert metrics["accuracy"] == metrics["accuracy/caption"] == 1.0
  assert metrics["examples/vqa"] == 3.0
  wrong = [e._replace(answers=("zzz",)) for e in examples]
  metrics = vqa.evaluate(policy, [(images, sizes, wrong)])
  assert metrics["accuracy"] == 0.0
