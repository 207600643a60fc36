"""Packs pictures in two art styles, and what is known about them, in one file.

  npm pack --pack-destination DIR emoji-datasource-google@16.0.0 \\
    emoji-datasource-twitter@16.0.0 emojibase-data@17.0.0
  python -m data.make_pictures --packages=DIR

makes `data/pictures.zip`: for every line of `data/picture_facts.toml` a
picture of 64 x 64 pixels from Noto Emoji and one from Twemoji (two atlases in
WebP), and `concepts.json` with names, categories, keywords (from emojibase) and
facts. The same packages give the same pictures. Licences: see NOTICE.
"""

import io
import json
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import app, flags
from PIL import Image

from launch import program
from rt2_jax import storage
from rt2_jax.envs.tabletop.pictures import ATLAS_COLUMNS, SIDE
from rt2_jax.errors import UserError

FACTS = Path(__file__).with_name("picture_facts.toml")
DEFAULT_OUTPUT = Path(__file__).with_name("pictures.zip")

KEYWORDS = "emojibase-data-17.0.0.tgz"
# Art style: the package, and the folder of its pictures.
STYLES = {
  "noto": ("emoji-datasource-google-16.0.0.tgz", "google"),
  "twemoji": ("emoji-datasource-twitter-16.0.0.tgz", "twitter"),
}
WEBP_QUALITY = 85
LANGUAGES = {"de", "fr", "es"}
KNOWN_FACTS = {"colour", "does", "country", "capital", "value"} | LANGUAGES
_DATE = (2026, 1, 1, 0, 0, 0)  # of the files inside, so that bytes repeat


def read_facts(path: Path = FACTS) -> list[dict[str, Any]]:
  """Reads the facts file, in order: name, category, emoji, facts.

  Raises:
    UserError: a line without emoji, an unknown fact, or a name used twice.
  """
  concepts, names = [], set()
  for category, lines in tomllib.loads(path.read_text("utf-8")).items():
    for name, line in lines.items():
      unknown = line.keys() - KNOWN_FACTS - {"emoji"}
      if "emoji" not in line or unknown:
        raise UserError(
          f"{path}, {name!r}: got the fields {', '.join(line)}, expected "
          f"'emoji' and any of {', '.join(sorted(KNOWN_FACTS))}"
        )
      if name in names:
        raise UserError(
          f"{path}: got {name!r} twice, expected a name of its own for each "
          "picture; rename one"
        )
      names.add(name)
      facts = {k: v for k, v in line.items() if k != "emoji"}
      concepts.append(
        {"name": name, "category": category, "facts": facts}
        | {"emoji": line["emoji"]}
      )
  return concepts


def code_of(emoji: str) -> str:
  """Writes an emoji's code points, `"1F1EF-1F1F5"`, without the colour mark."""
  return "-".join(f"{ord(c):04X}" for c in emoji if c != "\ufe0f")


class Package:
  """A downloaded npm package, read in place."""

  def __init__(self, folder: Path, name: str):
    path = folder / name
    if not path.is_file():
      raise UserError(
        f"got packages folder {str(folder)!r} without {name}; download it "
        f"there with `npm pack {'@'.join(name[:-4].rsplit('-', 1))}`"
      )
    self._tar = tarfile.open(path)  # noqa: SIM115

  def read(self, name: str) -> bytes:
    return self._tar.extractfile(f"package/{name}").read()


def keywords(folder: Path) -> dict[str, list[str]]:
  """Words that go with each emoji, by its code."""
  entries = json.loads(Package(folder, KEYWORDS).read("en/data.json"))
  return {code_of(e["emoji"]): e.get("tags", []) for e in entries}


def pictures(
  folder: Path, style: str, codes: Sequence[str]
) -> list[Image.Image]:
  """Reads pictures of emoji in an art style, 64 x 64 with opacity."""
  name, where = STYLES[style]
  package = Package(folder, name)
  files = {
    entry["unified"].replace("-FE0F", ""): entry["image"]
    for entry in json.loads(package.read("emoji.json"))
    if entry[f"has_img_{where}"]
  }
  missing = [code for code in codes if code not in files]
  if missing:
    raise UserError(
      f"{name}: got no picture for {', '.join(missing)}; remove these lines "
      f"from {FACTS.name}"
    )
  return [
    Image.open(io.BytesIO(package.read(f"img/{where}/64/{files[code]}")))
    .convert("RGBA")
    .resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    for code in tqdm.tqdm(codes, desc=style, mininterval=1)
  ]


def atlas(images: Sequence[Image.Image]) -> bytes:
  """Lays the pictures side by side, as WebP."""
  rows = -(-len(images) // ATLAS_COLUMNS)
  sheet = Image.new("RGBA", (ATLAS_COLUMNS * SIDE, rows * SIDE))
  for i, image in enumerate(images):
    row, column = divmod(i, ATLAS_COLUMNS)
    sheet.paste(image, (column * SIDE, row * SIDE))
  data = io.BytesIO()
  sheet.save(data, "WEBP", quality=WEBP_QUALITY, method=6)
  return data.getvalue()


def too_alike(
  images: Sequence[Image.Image], names: Sequence[str], least: float = 1.0
) -> list[tuple[str, str]]:
  """Pairs whose pictures nobody could tell apart.

  Args:
    images: in one art style.
    names: what they show.
    least: mean difference of a channel that counts as different, grey levels.
  """
  small = np.stack(
    [np.asarray(i.resize((16, 16), Image.Resampling.BOX)) for i in images]
  )
  flat = small.reshape(len(small), -1).astype(np.float32)
  pairs = []
  for i in range(len(flat)):
    difference = np.abs(flat[i + 1 :] - flat[i]).mean(1)
    pairs += [
      (names[i], names[i + 1 + j]) for j in np.flatnonzero(difference < least)
    ]
  return pairs


def make(
  packages: Path, output: storage.Path, facts: Path = FACTS
) -> storage.Path:
  """Writes the file and returns its path.

  Raises:
    UserError: a missing package, a bad line of facts, an emoji without
      picture, or two pictures that look the same.
  """
  concepts = read_facts(facts)
  words = keywords(packages)
  codes = [code_of(c.pop("emoji")) for c in concepts]
  for concept, code in zip(concepts, codes, strict=True):
    concept["keywords"] = words.get(code, [])
  files: dict[str, bytes] = {}
  for style in STYLES:
    images = pictures(packages, style, codes)
    alike = too_alike(images, [c["name"] for c in concepts])
    if alike:
      raise UserError(
        f"{style}: got pictures that look the same: {alike}; keep one of each "
        f"pair in {facts.name}"
      )
    files[f"{style}.webp"] = atlas(images)
  index = {"styles": list(STYLES), "concepts": concepts}
  text = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
  write(output, {"concepts.json": text.encode()} | files)
  return output


def write(output: storage.Path, files: Mapping[str, bytes]) -> None:
  """Writes a zip file that depends on nothing but its contents."""
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as file:
    for name, data in files.items():
      info = zipfile.ZipInfo(name, _DATE)
      packed = name.endswith(".json")
      info.compress_type = (
        zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
      )
      file.writestr(info, data)
  storage.write(output, content.getvalue())


@program.main
def main():
  args = flags.FLAGS
  path = make(Path(args.packages), storage.locate(args.output, "--output"))
  concepts = read_facts()
  count = sum(len(c["facts"]) for c in concepts)
  print(
    f"{path}: {len(path.read_bytes()) / 1e6:.2f} MB, {len(concepts)} concepts "
    f"in {len(STYLES)} art styles, {count} facts"
  )


if __name__ == "__main__":
  flags.DEFINE_string(
    "packages", None, "Folder with the three npm packages", required=True
  )
  flags.DEFINE_string("output", str(DEFAULT_OUTPUT), "Where to write")
  app.run(main)
