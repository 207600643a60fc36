"""Configs and workdirs: what is accepted, and what each refusal says."""

import copy
import dataclasses
import json
import typing

import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tensorboard.backend.event_processing import event_accumulator

from configs import bridge_debug
from data import make_rt1_episodes
from rt2_jax import training, workdir
from rt2_jax.action_tokenizer import ActionConfig
from rt2_jax.augment import Augmentation
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.loader import LoaderConfig
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.input_pipeline.web import WebConfig
from rt2_jax.models import variants
from rt2_jax.models.vlm import init_params
from rt2_jax.observation import ObservationConfig
from rt2_jax.optimizer import OptimizerConfig
from rt2_jax.policy import Policy
from rt2_jax.prompt import PromptConfig
from rt2_jax.train_config import EvaluationConfig, TrainConfig, config_hash
from rt2_jax.weights import export
from tests import tiny_datasets
from tests.conftest import ROOT


@pytest.fixture
def fields(tmp_path):
  """configs/bridge_debug.py on 20 small steps, one layer of a model each."""
  fields = bridge_debug.get_config().to_dict()
  fields["tokenizer_file"] = str(ROOT / "data/small_tokenizer.model")
  source = tiny_datasets.bridge_source(tmp_path / "bridge" / "1.0.0")
  fields["sources"]["bridge"]["path"] = source.path
  fields["model"] |= {"img": "micro/16", "llm": "gemma_micro", "image_size": 32}
  fields["mesh"] = {"data": 2, "fsdp": 2, "model": 2}
  fields["augmentation"] = {"brightness": 0.1}
  fields["optimizer"]["warmup_steps"] = 1
  fields |= {"batch_size": 8, "num_steps": 4}
  fields |= {"log_every": 2, "checkpoint_every": 2, "keep_checkpoints": 2}
  return fields


@pytest.fixture
def alone(fields, monkeypatch):
  """`fields` for one device: the step compiles in a tenth of the time."""
  make = TrainConfig.make_mesh
  monkeypatch.setattr(
    TrainConfig, "make_mesh", lambda self, all: make(self, all[:1])
  )
  return fields | {"mesh": {}}


def test_training_resumes_bit_for_bit_on_the_same_mesh(alone, tmp_path):
  whole = training.train(alone, tmp_path / "run")
  # As if it had been stopped after step 2.
  (tmp_path / "run/checkpoints/4").rename(tmp_path / "set_aside")
  resumed = training.train(alone, tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
  jax.tree.map(
    np.testing.assert_array_equal, whole.opt_state, resumed.opt_state
  )


def test_a_run_goes_on_with_another_mesh(fields, tmp_path):
  whole = training.train(fields, tmp_path / "run")
  last = tmp_path / "run" / "checkpoints" / "4"
  last.rename(tmp_path / "set_aside")
  fields["mesh"] = {"data": 8, "fsdp": 1, "model": 1}
  resumed = training.train(fields, tmp_path / "run")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
    jax.device_get(whole.params),
    jax.device_get(resumed.params),
  )


def test_training_starts_from_pretrained_weights(fields, tmp_path):
  config = TrainConfig.from_dict(fields | {"pretrained": ""})
  params = init_params(config.model, jax.random.key(7))
  export.to_big_vision(params, tmp_path / "weights.npz")
  fields["pretrained"] = str(tmp_path / "weights.npz")
  fields["optimizer"]["learning_rate"] = 0.0
  state = training.train(fields, tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  linear = state.params["llm"]["layers"]["mlp"]["linear"]
  assert linear.sharding.spec == P(None, "model", "fsdp")


def test_weights_of_another_model_are_refused(alone, tmp_path):
  config = TrainConfig.from_dict(alone)
  other = dataclasses.replace(config.model.llm, depth=3)
  other = dataclasses.replace(config.model, llm=other)
  params = init_params(other, jax.random.key(7))
  export.to_big_vision(params, tmp_path / "weights.npz")
  alone["pretrained"] = str(tmp_path / "weights.npz")
  with pytest.raises(ValueError, match=r"llm/layers/mlp/linear"):
    training.train(alone, tmp_path / "run")
  assert not (tmp_path / "run").exists()  # claimed by what can start


def test_statistics_give_bounds_and_stay_in_the_checkpoint(fields):
  file = ROOT / "data/stats/bridge_debug.json"
  source = {"statistics": str(file), "bounds": "q01_q99"}
  fields["sources"]["bridge"] |= source
  config = TrainConfig.from_dict(fields)
  meta = training.make_meta(config, fields, config.action_tokenizers(), {})
  assert meta.control_hz == {"bridge": 5.0}
  figures = json.loads(file.read_text())
  assert meta.statistics == {"bridge": figures}
  dx = meta.action_tokenizers["bridge"].space.dimensions[1]
  assert [dx.low, dx.high] == figures["bounds"]["dx"]


def test_tensorboard_gets_every_metric_of_every_source(alone, tmp_path):
  training.train(alone, tmp_path / "run")
  log = event_accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
  tags = log.Reload().Tags()["scalars"]
  for tag in (
    "train/loss",
    "train/bridge/loss",
    "train/bridge/share",
    "train/bridge/accuracy/terminate",
    "train/bridge/l1/dx_m",
    "train/bridge/l1/dyaw_rad",
    "train/gradient_norm",
    "train/examples_per_s",
    "train/learning_rate",
  ):
    assert tag in tags
  shares = [e.value for e in log.Scalars("train/bridge/share")]
  assert shares == [1.0, 1.0]


def test_robots_and_web_are_learnt_in_one_batch(alone, tmp_path):
  """Co-fine-tuning: every loss falls, in the paper's share, at any size."""
  make_rt1_episodes.make(tmp_path / "rt1", 2, 1, seed=0)
  alone["sources"]["rt1"] = {
    "dataset": "fractal20220817_data",
    "path": str(tmp_path / "rt1/fractal20220817_data/0.1.0"),
    "weight": 0.5,
  }
  colours = ("red", "green", "blue")
  tiny_datasets.write(
    tmp_path / "web",
    [tiny_datasets.web_example(i, answers=(colours[i % 3],)) for i in range(6)],
  )
  alone["web"] = {"pictures": {"path": str(tmp_path / "web")}}
  tiny_datasets.write(
    tmp_path / "web",
    [tiny_datasets.web_example(i, answers=(colours[i % 3],)) for i in range(4)],
    split="val",
  )
  alone["web"]["pictures"]["eval_split"] = "val"
  alone["evaluation"] = {"every": 20, "num_robot_steps": 4, "batch_size": 4}
  alone["robot_share"] = 0.66
  alone["optimizer"]["learning_rate"] = 5e-3
  alone |= {"batch_size": 16, "num_steps": 24, "log_every": 6}
  training.train(alone, tmp_path / "run")
  log = event_accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
  log.Reload()
  shares = {"bridge": 0.44, "rt1": 0.22, "pictures": 0.34}
  for source, share in shares.items():
    losses = [e.value for e in log.Scalars(f"train/{source}/loss")]
    assert losses[-1] < 0.6 * losses[0]
    realized = [e.value for e in log.Scalars(f"train/{source}/share")]
    np.testing.assert_allclose(realized, share, atol=0.02)
  for tag in (
    "eval/bridge/forced_accuracy/mean",
    "eval/rt1/l1/dx",
    "eval/pictures/accuracy",
  ):
    assert [e.step for e in log.Scalars(tag)] == [20, 24]
  pictures = {
    f"eval/{name}/{i}" for name in ("bridge", "rt1") for i in range(4)
  }
  assert set(log.Tags()["images"]) == pictures
  assert [e.step for e in log.Images("eval/rt1/3")] == [20, 24]


def test_a_model_pretrained_on_the_web_becomes_a_robots(alone, tmp_path):
  """From one workdir to the next; the first one answers and cannot act."""
  tiny_datasets.write(
    tmp_path / "web",
    [tiny_datasets.web_example(i, answers=("red",)) for i in range(6)],
  )
  web = {"path": str(tmp_path / "web"), "eval_split": "train"}
  robots = alone.pop("sources")
  first = alone | {"sources": {}, "web": {"w": web}, "robot_share": 0.0}
  first["evaluation"] = {"every": 4, "num_questions": 4, "batch_size": 4}
  learnt = training.train(first, tmp_path / "web_run")
  policy = Policy.from_checkpoint(tmp_path / "web_run")
  image = np.zeros((1, 48, 64, 3), np.uint8)
  assert len(policy.answer(image, ["Answer in en: which colour?"])) == 1
  with pytest.raises(ValueError, match="trained on no robot, which answers"):
    policy(image[0], "pick apple")
  alone |= {"sources": robots, "pretrained": str(tmp_path / "web_run")}
  alone["optimizer"]["learning_rate"] = 0.0
  state = training.train(alone, tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, state.params, learnt.params)
  alone["model"]["llm"] = "gemma2_tiny"
  with pytest.raises(ValueError, match="another model .*config.pretrained"):
    training.train(alone, tmp_path / "other")


def test_a_mean_of_the_parameters_is_what_acts(alone, tmp_path):
  """Resumed bit for bit as well; a policy gets the mean."""
  alone["optimizer"]["ema_decay"] = 0.5
  whole = training.train(alone, tmp_path / "run")
  (tmp_path / "run/checkpoints/4").rename(tmp_path / "set_aside")
  resumed = training.train(alone, tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
  jax.tree.map(np.testing.assert_array_equal, whole.ema, resumed.ema)
  policy = Policy.from_checkpoint(tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, policy.params, whole.ema)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("batchsize", 3, r"'batchsize' for a field of config, .* 'batch_size'\?"),
    ("model.depht", 3, r"'depht' for a field of config\.model, expected"),
    ("model.llm", "gemma_3b", "'gemma_3b' for decoder, expected one of: gemma"),
    ("optimizer.lr", 1, r"'lr' for a field of config\.optimizer, expected one"),
    ("sources.bridge.dataset", "bridg", "for dataset, expected one of: fracta"),
    ("sources.bridge.split", "test", "got split 'test', expected one of train"),
    ("sources.bridge.bounds", {"dq": (0, 1)}, "got 'dq' for dimension of acti"),
    (
      "sources.bridge.weight",
      0.0,
      r"got config\.sources\.bridge\.weight = 0\.0, expected more than 0",
    ),
    (
      "robot_share",
      0.5,
      "robot_share = 0.5 with 1 robot and 0 web sources, ex",
    ),
    ("sources.bridge.weight", float("inf"), "weight = inf, expected more than"),
    ("keep_checkpoints", 0, "config.keep_checkpoints = 0, expected at least 1"),
    ("checkpoint_every", 2.0, r"checkpoint_every = 2\.0, .* \(a whole number"),
    ("num_steps", -5, "config.num_steps = -5, expected at least 1 and at most"),
    ("seed", -1, "config.seed = -1, expected at least 0 and at most 42949672"),
    ("seed", True, "config.seed = True, expected at least 0"),
    ("batch_size", "8", "config.batch_size = '8', expected at least 1"),
    ("loader.num_threads", 0, "loader.num_threads = 0, expected at least 1"),
    ("loader.max_skipped", -1, "loader.max_skipped = -1, expected at least 0"),
    ("evaluation.every", -1, "evaluation.every = -1, expected at least 0"),
    ("evaluation.num_robot_steps", 0, "num_robot_steps = 0, expected at least"),
    ("prompt.prefix_length", 0, "prompt.prefix_length = 0, expected at least"),
    ("prompt.plan_length", -1, "prompt.plan_length = -1, expected at least 0"),
    ("observation.history", 0, "observation.history = 0, expected at least 1"),
    ("model.final_softcap", -1.0, "final_softcap = -1.0, expected at least 0"),
    ("optimizer.b1", 1.0, "optimizer.b1 = 1.0, expected at least 0 and less "),
    ("robot_share", 1.5, "config.robot_share = 1.5, expected .* at most 1"),
    ("mesh.dat", 1, "'dat' for an axis of config.mesh, .* did you mean 'data'"),
    ("pretrained", "nowhere/weights.npz", "nowhere"),
    ("sources", {}, "expected at least one source and no name twice; rename "),
    ("actions.route", "common", "'common' for action token route, expected on"),
    ("prompt.prefix_length", 12, "expected at most 12: 'Q: what action should"),
    ("prompt.suffix_length", 8, "answer of 9 tokens with eos, expected at mos"),
    ("model.remat", "ful", "'ful' for remat policy, .* did you mean 'full'"),
    ("model.vocab_size", 99, r"3200 ids, expected config.model.vocab_size = 9"),
    ("optimizer.frozen", ("x/",), "frozen 'x/', which matches no parameter; "),
    ("microbatches", 3, r"batch_size = 8, expected .* times config.microbatc"),
    ("microbatches", 0, "config.microbatches = 0, expected at least 1"),
    ("mesh.data", 3, r"got config\.mesh .* expected axes that multiply to 8"),
    ("objective", "patch", "'patch' for config.objective, .* mean 'patches'"),
    ("objective", "patches", "robot sources .'bridge'.* expected web sources "),
    ("batch_size", 6, r"config.batch_size = 6, expected a multiple of 4: s"),
    (
      "tokenizer_file",
      "README.md",
      "bytes that are not a SentencePiece model",
    ),
    ("augmentation.crop", -1.0, r"config\.augmentation\.crop = -1\.0, expecte"),
    ("optimizer.warmup_steps", 4, "warmup_steps = 4, expected less than confi"),
  ],
)
def test_a_mistake_is_named_before_the_first_step(
  fields, tmp_path, path, value, message
):
  *parents, last = path.split(".")
  part = fields
  for parent in parents:
    part = part.setdefault(parent, {})
  part[last] = value
  with pytest.raises(ValueError, match=message):
    training.train(fields, tmp_path / "run")
  assert not (tmp_path / "run").exists()  # the next try starts clean


def test_a_best_that_no_evaluation_finds_is_named_at_the_start(
  fields, tmp_path
):
  fields |= {"evaluation": {"every": 2}, "keep_best": "-bridge/l1/dxx"}
  with pytest.raises(UserError, match="'bridge/l1/dxx'.* 'bridge/l1/dx'"):
    training.train(fields, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_steps_to_trace_are_steps_of_the_run(fields, tmp_path):
  with pytest.raises(UserError, match="got .*=2:5 in a run of 4 .* at most 4"):
    training.train(fields, tmp_path / "run", range(2, 5))


def test_every_number_of_a_config_has_a_range():
  parts = [OptimizerConfig, Augmentation, SourceConfig, WebConfig, variants.vlm]
  parts += [PromptConfig, LoaderConfig, ObservationConfig, TrainConfig]
  parts += [EvaluationConfig, ActionConfig]
  for part in parts:
    for name, kind in typing.get_type_hints(part, include_extras=True).items():
      assert kind not in (int, float, int | None, float | None), (part, name)


@pytest.mark.parametrize(
  "workdir", ["memory://bucket/run", "nope://bucket/run", ""]
)
def test_a_workdir_elsewhere_is_refused(fields, tmp_path, workdir, monkeypatch):
  monkeypatch.chdir(tmp_path)
  before = sorted(tmp_path.iterdir())
  with pytest.raises(UserError, match=f"got .*({workdir}|nope://)"):
    training.train(fields, workdir)
  assert sorted(tmp_path.iterdir()) == before


def test_a_missing_field_is_named(fields, tmp_path):
  del fields["batch_size"], fields["optimizer"]["learning_rate"]
  with pytest.raises(
    ValueError, match=r"got no config\.optimizer\.learning_ra"
  ):
    training.train(fields, tmp_path / "run")


def test_a_workdir_of_another_experiment_is_left_alone(fields, tmp_path):
  with workdir.held(tmp_path, fields):
    pass
  (tmp_path / "checkpoints/1").mkdir(parents=True)
  before = (tmp_path / "config.json").read_text()
  other = copy.deepcopy(fields)
  other["optimizer"]["learning_rate"] = 0.5
  other["seed"] = 3
  with pytest.raises(
    ValueError,
    match=r"differs from the one in .*config\.json: config\.optimizer\."
    r"learning_rate is 0\.5, was 0\.001; config\.seed is 3, was 0; use another",
  ):
    workdir.check(tmp_path, other)
  assert (tmp_path / "config.json").read_text() == before


def test_what_a_layer_computes_again_may_change(alone, tmp_path):
  alone["num_steps"] = 2
  first = training.train(alone, tmp_path / "run")
  alone["model"]["remat"] = "dots"
  alone["log_every"] = 2
  again = training.train(alone, tmp_path / "run")
  chex.assert_trees_all_equal(again.params, first.params)


def test_a_checkpoint_of_another_model_or_action_space(alone, tmp_path):
  training.train(alone, tmp_path / "run")
  (tmp_path / "run/config.json").unlink()
  alone["model"]["llm"] = "gemma2_tiny"
  with pytest.raises(
    ValueError, match=r"another model or action space.* model\.llm\.attn_soft"
  ):
    training.train(alone, tmp_path / "run")
  assert not (tmp_path / "run/config.json").exists()  # nothing was claimed
  alone["model"]["llm"] = "gemma_micro"
  alone["sources"]["bridge"]["bounds"] = {"dx": (-0.5, 0.5)}
  with pytest.raises(
    ValueError, match=r"another model or action space.*action_tokenizers\.bri"
  ):
    training.train(alone, tmp_path / "run")


def test_a_config_is_named_by_its_values_alone():
  name = config_hash({"seed": 0, "mesh": {"data": -1, "fsdp": 1}})
  assert name == config_hash({"mesh": {"fsdp": 1, "data": -1}, "seed": 0})
  assert name != config_hash({"seed": 1, "mesh": {"data": -1, "fsdp": 1}})
  assert len(name) == 16
