"""Two cameras, a history, a robot's state and chunks, from files to robots.

LIBERO has a wrist camera, Bridge has none, web pictures have one image: all
three share a mixture on 8 devices.
"""

import jax
import numpy as np
import pytest

from configs import bridge_debug
from rt2_jax import augment, train_data, training
from rt2_jax.errors import UserError
from rt2_jax.evaluators import action_accuracy
from rt2_jax.images import decode
from rt2_jax.input_pipeline import in_order
from rt2_jax.input_pipeline.examples import open_robot
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.models.vlm import VLM
from rt2_jax.observation import ONE_CAMERA, Observation, to_batch
from rt2_jax.policy import Policy
from rt2_jax.pytorch.policy import TorchPolicy
from rt2_jax.train_config import TrainConfig
from rt2_jax.weights import export
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint
from tests import tiny_datasets
from tests.conftest import ROOT

HISTORY, HORIZON = 2, 4
TEMPLATE = "Q: what should the robot do to {instruction}? State: {state} A:"


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  for name, episodes in {
    "libero": [tiny_datasets.libero_episode(i) for i in range(3)],
    "bridge_dataset": [
      tiny_datasets.bridge_episode(i)
      | {"steps/observation/state": [0.1 * i] * 7 * 5}
      for i in range(3)
    ],
  }.items():
    tiny_datasets.write(folder / name, episodes, name)
  web = [tiny_datasets.web_example(i) for i in range(6)]
  tiny_datasets.write(folder / "web", web, "web")
  fields = bridge_debug.get_config().to_dict()
  fields["tokenizer_file"] = str(ROOT / "data/small_tokenizer.model")
  fields["model"] |= {"image_size": 32}
  fields["observation"] = {
    "cameras": ["primary", "wrist"],
    "history": HISTORY,
    "uncropped": ["wrist"],
    "state": True,
    "state_dropout": 0.25,
  }
  fields["actions"] = {"route": "rare", "horizon": HORIZON}
  fields["prompt"] = {
    "prefix_length": 48,
    "suffix_length": 8 * HORIZON + 1,
    "template": TEMPLATE,
  }
  fields["sources"] = {
    name: {"dataset": dataset, "path": str(folder / dataset)}
    for name, dataset in (("libero", "libero"), ("bridge", "bridge_dataset"))
  }
  fields["web"] = {"web": {"path": str(folder / "web"), "eval_split": ""}}
  fields["robot_share"] = 0.75
  fields["mesh"] = {"data": 2, "fsdp": 2, "model": 2}
  fields["augmentation"] = {"crop": 0.2, "brightness": 0.1}
  fields["optimizer"] |= {"warmup_steps": 1}
  fields["evaluation"] = {"every": 4, "num_robot_steps": 6, "batch_size": 4}
  fields |= {"batch_size": 16, "num_steps": 4}
  fields |= {"log_every": 2, "checkpoint_every": 2, "keep_checkpoints": 2}
  return fields


@pytest.fixture(scope="module")
def run(fields, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  return workdir, training.train(fields, workdir)


def test_a_run_goes_on_bit_for_bit(fields, run, tmp_path):
  _, whole = run
  training.train(fields, tmp_path / "half")
  last = tmp_path / "half" / "checkpoints" / "4"
  last.rename(tmp_path / "set_aside")
  resumed = training.train(fields, tmp_path / "half")
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


@pytest.fixture(scope="module")
def batch(fields):
  config = TrainConfig.from_dict(fields)
  mesh = config.make_mesh(jax.devices())
  loader = train_data.make_loader(config, config.action_tokenizers(), mesh)
  (batch,) = loader.batches(0, 1)
  return batch


def test_a_batch_holds_every_camera_and_says_which_are_missing(batch):
  sizes = {0: [(64, 64)] * 2 + [(40, 48)] * 2, 1: [(64, 64)] * 2 + [(0, 0)] * 2}
  assert set(batch.source) == {0, 1, 2}
  for b, source in enumerate(batch.source):
    found = batch.image_size[b].tolist()
    if source == 2:  # one picture, shown as each frame of the first camera
      assert found[0] == found[1] and found[2:] == [[0, 0]] * 2
      np.testing.assert_array_equal(batch.image[b, 0], batch.image[b, 1])
    else:
      assert found == [list(size) for size in sizes[source]]
    for f, (height, width) in enumerate(found):
      assert not batch.image[b, f, height:].any()
      assert not batch.image[b, f, :, width:].any()
  shown = np.asarray(augment.shown(batch.image_size))
  expected = [[True] * 2 + [source == 0] * 2 for source in batch.source]
  np.testing.assert_array_equal(shown, expected)


def test_a_wrist_camera_is_recoloured_and_not_cropped(fields, batch):
  config = TrainConfig.from_dict(fields)
  mesh = config.make_mesh(jax.devices()[:8])
  trainer = config.make_trainer(config.action_tokenizers(), mesh)
  changed = np.asarray(trainer.training_images(batch, 0))
  plain = np.asarray(augment.prepare(batch.image, 32, batch.image_size))
  for b in np.flatnonzero(batch.source == 0):
    # Brightness alone shifts every pixel that is not clipped by one number.
    shift = (changed - plain)[b, 2:][np.abs(changed[b, 2:]) < 0.99]
    assert np.ptp(shift) < 1e-5
    cropped = (changed - plain)[b, :2][np.abs(changed[b, :2]) < 0.99]
    assert np.ptp(cropped) > 0.01
    # The frames of a camera change alike: the first of an episode is repeated.
    if (batch.image[b, 0] == batch.image[b, 1]).all():
      np.testing.assert_array_equal(changed[b, 0], changed[b, 1])


def test_chunks_end_at_rest_and_prompts_hold_the_state(fields, tokenizer):
  config = TrainConfig.from_dict(fields)
  tokens, prompt = config.action_tokenizers()["libero"], config.make_prompt()
  spec = config.observation_specs()["libero"]
  source = config.sources["libero"]
  examples = open_robot(source, "train", tokens, prompt, spec, "", 0)
  recorded = examples.recorded_chunks(range(15))
  index = examples.source.index
  assert recorded.shape == (15, HORIZON, 8)
  for i in range(15):
    for h in range(HORIZON):
      if i % 5 + h < 5:
        np.testing.assert_array_equal(recorded[i, h], index.action[i + h])
      else:
        last = index.action[i // 5 * 5 + 4]
        np.testing.assert_array_equal(
          recorded[i, h], [1, 0, 0, 0, 0, 0, 0, last[7]]
        )
  data = examples.storage.read(examples.requests([7])[0])
  row = tiny_datasets.row(examples, 7, 0, data)
  answer = row.suffix[: tokens.answer_length]
  again = tokens.decode(answer)
  np.testing.assert_array_equal(
    tokens.to_bins(again), tokens.to_bins(recorded[7])
  )
  ids = prompt.state_ids(spec.state, index.state[7])
  before = tokenizer.encode(
    "Q: what should the robot do to open the drawer? State: "
  )
  prefix = row.prefix[row.mask_input].tolist()
  assert prefix[1 : len(before) + 9] == [*before, *ids]
  shown = [decode(each) for each in row.images]
  assert [each.shape[:2] for each in shown] == [(64, 64)] * 2 + [(40, 48)] * 2
  # Frames 6 and 7 are the second and third of the second episode.
  assert row.images[0] == tiny_datasets.jpeg(1001)
  assert row.images[3] == tiny_datasets.jpeg(1502, 40, 48)


def test_dropout_leaves_out_the_state_of_some_examples(fields, tokenizer):
  config = TrainConfig.from_dict(fields)
  tokens, prompt = config.action_tokenizers()["libero"], config.make_prompt()
  spec = config.observation_specs()["libero"]
  source = config.sources["libero"]
  examples = open_robot(
    source, "train", tokens, prompt, spec, "", 0, state_dropout=0.5
  )
  lengths = np.array(
    [
      [
        tiny_datasets.row(examples, i, epoch, [b""] * 4).mask_input.sum()
        for i in range(15)
      ]
      for epoch in range(8)
    ]
  )
  assert set(np.ptp(lengths, keepdims=True).ravel()) == {8}
  assert 0.3 < (lengths == lengths.max()).mean() < 0.7
  assert (lengths[0] != lengths[1]).any()


@pytest.fixture(scope="module")
def policies(run, tmp_path_factory):
  """Of each source: in JAX, and what its export is in PyTorch."""
  workdir, _ = run
  folder = tmp_path_factory.mktemp("exported")
  stored = StoredCheckpoint.open(workdir)
  model = stored.model
  export.to_huggingface(
    stored.read_params(), model, stored.meta, stored.tokenizer, folder
  )
  return {
    name: (
      Policy.from_checkpoint(workdir, name),
      TorchPolicy.from_folder(folder, name),
    )
    for name in ("libero", "bridge")
  }


def observations(name, count=6):
  rng = np.random.default_rng(1)
  coarse = rng.integers(0, 256, (count, HISTORY, 6, 8, 3), np.uint8)
  primary = coarse.repeat(10, 2).repeat(10, 3)
  images = [{"primary": each} for each in primary]
  width = 7
  if name == "libero":
    images = [each | {"wrist": each["primary"][:, :40, :48]} for each in images]
    width = 8
  state = rng.uniform(-0.5, 0.5, (count, width)).astype(np.float32)
  return [
    Observation(image, f"pick {i}", state[i]) for i, image in enumerate(images)
  ]


@pytest.mark.parametrize("name", ["libero", "bridge"])
def test_jax_and_pytorch_act_alike(policies, name):
  ours, theirs = policies[name]
  seen = observations(name)
  chunks = ours.act(seen)
  assert chunks.shape == (6, HORIZON, 8) and chunks.dtype == np.float32
  np.testing.assert_array_equal(theirs.act(seen), chunks)
  for i in (0, 5):
    np.testing.assert_array_equal(ours.act([seen[i]])[0], chunks[i])


def test_the_state_and_each_camera_count(policies):
  """A trained robot's logits move with all that it is shown."""
  ours, _ = policies["libero"]
  one = observations("libero")[0]
  dark = {name: image // 2 for name, image in one.images.items()}
  changes = [
    one._replace(state=one.state + 0.4),
    *(one._replace(images=one.images | {c: dark[c]}) for c in dark),
    one._replace(images=one.images | {"primary": one.images["primary"][::-1]}),
  ]
  logits = [_logits(ours, each) for each in (one, *changes)]
  for changed in logits[1:]:
    assert np.abs(changed - logits[0]).max() > 1e-4


def _logits(policy, observation):
  seen = to_batch([observation], policy.observation)
  images = augment.prepare(seen.image, 32, seen.image_size)
  suffix = np.ones((1, 2), np.int32)
  shown = augment.shown(seen.image_size)
  arguments = (images, *policy.prompts(seen), suffix, shown)
  return np.asarray(
    VLM(policy.model).apply({"params": policy.params}, *arguments)
  )


@pytest.mark.parametrize(
  ("name", "change", "got"),
  [
    (
      "libero",
      {"images": {"primary": np.zeros((2, 64, 64, 3), np.uint8)}},
      r"cameras \['primary'\], expected \['primary', 'wrist'\]",
    ),
    (
      "bridge",
      {
        "images": dict.fromkeys(
          ("primary", "wrist"), np.zeros((2, 64, 64, 3), np.uint8)
        )
      },
      r"\['primary', 'wrist'\], expected \['primary'\]",
    ),
    (
      "bridge",
      {"images": {"primary": np.zeros((1, 64, 64, 3), np.uint8)}},
      r"uint8\[1, 64, 64, 3\] from camera 'primary', expected uint8\[2, H",
    ),
    ("libero", {"state": None}, r"shape \[0\], expected 8 numbers: x, y, z"),
    ("libero", {"state": np.zeros(7)}, r"shape \[7\], expected 8 numbers"),
    ("libero", {"state": np.full(8, np.nan)}, r"got nan .*'x'"),
  ],
)
def test_other_observations_are_refused(policies, name, change, got):
  one = observations(name)[0]._replace(**change)
  for policy in policies[name]:
    with pytest.raises(UserError, match=got):
      policy.act([one])


def test_one_image_is_no_observation_of_two_cameras(policies):
  for policy in policies["libero"]:
    with pytest.raises(UserError, match=r"call policy.act"):
      policy(np.zeros((2, 64, 64, 3), np.uint8), "pick")


@pytest.mark.parametrize(
  ("changes", "got"),
  [
    (
      {"cameras": ["front"], "uncropped": []},
      r"\['front'\] for dataset 'libero', expected .*wri",
    ),
    (
      {"cameras": ["primary", "hand"], "uncropped": []},
      r"no source has \['hand'\]",
    ),
    ({"state": False}, "state = False with the template"),
    ({"uncropped": ["hand"]}, r"uncropped cameras \['hand'\]"),
    ({"history": 0}, "config.observation.history = 0"),
    ({"wrong": 1}, "wrong"),
  ],
)
def test_wrong_configs_are_refused(fields, changes, got):
  changed = fields | {"observation": fields["observation"] | changes}
  with pytest.raises(UserError, match=got):
    TrainConfig.from_dict(changed).observation_specs()


def test_recorded_steps_are_evaluated_per_action_of_the_chunk(fields, policies):
  config = TrainConfig.from_dict(fields)
  for name in ("libero", "bridge"):
    ours, _ = policies[name]
    examples = open_robot(
      config.sources[name],
      "train",
      ours.action_tokenizer,
      ours.prompt,
      ours.observation,
      "",
      0,
    )
    calls = in_order.read_steps(examples, 32, 8)
    metrics = action_accuracy.evaluate(ours, calls).metrics()
    each = [metrics[f"within_2_bins/action_{h}"] for h in range(HORIZON)]
    np.testing.assert_allclose(np.mean(each), metrics["within_2_bins/all"])
    assert "forced_accuracy/gripper" in metrics


def test_a_dataset_without_a_state_writes_none():
  spec = SourceConfig("bridge", "data").observation_spec(ONE_CAMERA, True)
  assert spec.state is None and not spec.missing
