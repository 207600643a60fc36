"""A small picture, and web records read back."""

import io

from PIL import Image

from data.web_inputs import Defaults
from rt2_jax.input_pipeline import records, web
from rt2_jax.tokenizer import Tokenizer
from tests.conftest import ROOT

DEFAULTS = Defaults()
TOKENIZER = Tokenizer.from_file(ROOT / "data/small_tokenizer.model")


def picture(width=40, height=30, file_format="png", orientation=1) -> bytes:
  """Red in its left half as stored, blue in its right half."""
  image = Image.new("RGB", (width, height), "blue")
  image.paste("red", (0, 0, width // 2, height))
  file = io.BytesIO()
  exif = Image.Exif()
  if orientation != 1:
    exif[0x0112] = orientation
  image.save(file, file_format, exif=exif)
  return file.getvalue()


def read(folder) -> list[web.WebExample]:
  """Every example of the training split, through the library's own reader."""
  source = web.open_source(web.WebConfig(str(folder)), TOKENIZER)
  examples = []
  for i in range(len(source)):
    (request,) = source.requests([i])[0]
    (data,) = source.storage.read([request])
    record = records.Record(request.path, request.offset, memoryview(data))
    examples.append(web.parse(record))
  return examples
