"""A source's own choices: cameras, the version folder."""

import pytest

from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec
from tests import tiny_datasets


def test_a_source_chooses_its_cameras_and_its_only_version(tmp_path):
  version = tmp_path / "libero" / "1.0.0"
  tiny_datasets.write(version, [tiny_datasets.libero_episode(0)], "libero")
  spec = ObservationSpec(cameras=("primary", "wrist"))

  def images(**cameras):
    config = SourceConfig("libero", str(version.parent), cameras=cameras)
    own = config.observation_spec(spec, reads_state=False)
    source = open_source(config, "train", own)
    return source.storage.read(source.requests([2])[0]), own.missing

  outer, wrist = tiny_datasets.jpeg(2), tiny_datasets.jpeg(502, 40, 48)
  assert images() == ([outer, wrist], ())
  assert images(primary="wrist", wrist="primary") == ([wrist, outer], ())
  assert images(wrist="observation/image") == ([outer, outer], ())
  assert images(wrist="") == ([outer], ("wrist",))
  with pytest.raises(ValueError, match=r"got a record without .*'steps/no'"):
    images(wrist="no")
