"""Image-text datasets of TFDS."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import make_web_records, tfds_writer, web_tfds
from tests import tiny_datasets
from tests.tiny_web import DEFAULTS, read


class Captions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The features of coco_captions that count."""

  VERSION = tfds.core.Version("1.1.0")
  code_path = None

  def _info(self):
    caption = {"id": np.int64, "text": tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "captions": tfds.features.Sequence(caption),
          "image": tfds.features.Image(encoding_format="jpeg"),
          "image/filename": tfds.features.Text(),
        }
      ),
    )

  def _split_generators(self, _):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(3):
      texts = [f"caption {i}", f"another {i}"]
      yield (
        i,
        {
          "captions": [{"id": k, "text": text} for k, text in enumerate(texts)],
          "image": io.BytesIO(tiny_datasets.jpeg(i)),
          "image/filename": f"{i}.jpg",
        },
      )


def test_tfds_round_trip(tmp_path):
  builder = Captions(data_dir=tmp_path / "tfds")
  tfds_writer.write_quietly(builder)
  folder = builder.data_path
  found = web_tfds.read_tfds(
    folder, "train", "captions/text", DEFAULTS._replace(task="caption")
  )
  make_web_records.make(found, tmp_path / "out", "coco")
  examples = sorted(read(tmp_path / "out"), key=lambda e: e.answers)
  assert [e.answers for e in examples] == [
    (f"caption {i}", f"another {i}") for i in range(3)
  ]
  for i, example in enumerate(examples):
    assert example.image == tiny_datasets.jpeg(i)  # kept as it was
    assert example[1:2] + example[3:] == (DEFAULTS.question, "caption", "en")
  with pytest.raises(
    ValueError, match="got --answers=captions/txt, expected a path through"
  ):
    next(web_tfds.read_tfds(folder, "train", "captions/txt", DEFAULTS))
