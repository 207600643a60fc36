"""Episodes at a lower rate."""

import numpy as np
import pytest

from rt2_jax.action_spaces import RT2, RT2_SPEEDS
from rt2_jax.input_pipeline.episodes import Canonical
from rt2_jax.input_pipeline.resampling import resample
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec
from tests import tiny_datasets


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 9])
def test_displacements_add_up_and_the_rest_is_the_last(stride):
  action = np.random.default_rng(0).uniform(-1, 1, (5, 8)).astype(np.float32)
  action[:, 0] = [0, 0, 0, 0, 1]
  texts = list("abcde")
  canonical = Canonical(texts, action, texts)
  found, steps = resample(canonical, np.arange(3, 8), RT2, stride)
  groups = [range(5)[i : i + stride] for i in range(0, 5, stride)]
  assert steps.tolist() == [3 + group[0] for group in groups]
  assert found.instruction == found.plan == [texts[g[0]] for g in groups]
  for row, group in zip(found.action, groups, strict=True):
    np.testing.assert_allclose(row[1:7], action[group, 1:7].sum(0), atol=1e-6)
    np.testing.assert_array_equal(row[[0, 7]], action[group[-1], [0, 7]])
  speeds, _ = resample(canonical, np.arange(5), RT2_SPEEDS, stride)
  for row, group in zip(speeds.action, groups, strict=True):
    np.testing.assert_allclose(row[1:7], action[group, 1:7].mean(0), atol=1e-6)


def test_frames_before_are_of_the_lower_rate_too(tmp_path):
  tiny_datasets.bridge_source(tmp_path, num_episodes=2)
  spec = ObservationSpec(history=2)
  config = SourceConfig("bridge_dataset", str(tmp_path), stride=2)
  source = open_source(config, "train", spec)
  assert len(source) == 6 and source.index.action[[2, 5], 0].tolist() == [1, 1]
  for i, (seed, before, now) in enumerate(
    [(0, 0, 0), (0, 0, 2), (0, 2, 4), (1, 0, 0), (1, 0, 2), (1, 2, 4)]
  ):
    shown = source.storage.read(source.requests([i])[0])
    frames = [tiny_datasets.jpeg(seed * 1000 + t) for t in (before, now)]
    assert shown == frames
