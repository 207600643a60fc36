"""Tars of WebDataset and img2dataset, sound and damaged."""

import io
import json
import tarfile

import pytest

from data import make_web_records, web_tars
from rt2_jax.errors import UserError
from tests.tiny_web import DEFAULTS, picture, read


def write_tar(path, files):
  with tarfile.open(path, "w") as tar:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def test_webdataset_round_trip(tmp_path):
  fields = {"prefix": "detect cup", "suffix": "<loc0001> cup", "task": "detect"}
  write_tar(
    tmp_path / "1.tar",
    {"x/1.PNG": picture(), "x/1.json": json.dumps(fields).encode()},
  )
  write_tar(
    tmp_path / "0.tar",
    {"0.jpg": picture(file_format="jpeg"), "0.txt": b"a caption"},
  )
  found = web_tars.read_tars(str(tmp_path / "*.tar"), DEFAULTS)
  make_web_records.make(found, tmp_path / "out", "wds")
  caption, detection = read(tmp_path / "out")
  assert caption[1:3] == (DEFAULTS.question, ("a caption",))
  assert detection[1:4] == ("detect cup", ("<loc0001> cup",), "detect")


def test_a_name_with_brackets_is_no_pattern(tmp_path):
  path = tmp_path / "part[1].tar"
  write_tar(path, {"0.png": picture(), "0.txt": b"a caption"})
  (found,) = web_tars.read_tars(str(path), DEFAULTS)
  assert found.load().answers == ("a caption",)


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"0.png": b""}, r"^got files with the extensions png, expected"),
    ({"0.txt": b"a"}, r"^got files with the extensions txt, expect"),
    ({"0.json": b"{", "0.png": b""}, r"^got text that is not JSON"),
    ({"0.txt": b"caf\xe9", "0.png": b""}, r"^got a text that is not UTF-8"),
  ],
)
def test_a_bad_sample_of_a_tar_is_named(tmp_path, files, message):
  write_tar(tmp_path / "0.tar", files)
  (found,) = web_tars.read_tars(str(tmp_path / "*.tar"), DEFAULTS)
  assert found.where.endswith("0.tar, 0")
  with pytest.raises(UserError, match=message):
    found.load()


def test_a_damaged_tar_is_one_bad_example(tmp_path):
  with pytest.raises(UserError, match="which no tar matches"):
    next(web_tars.read_tars(str(tmp_path / "*.tar"), DEFAULTS))
  files = {f"{i}.{kind}": picture() for i in range(3) for kind in ("png",)}
  files |= {f"{i}.txt": b"a" for i in range(3)}
  write_tar(tmp_path / "0.tar", dict(sorted(files.items())))
  whole = (tmp_path / "0.tar").read_bytes()
  (tmp_path / "0.tar").write_bytes(whole[: 512 * 5])
  (tmp_path / "1.tar").write_bytes(b"no tar" * 100)
  *found, last = web_tars.read_tars(str(tmp_path / "*.tar"), DEFAULTS)
  assert found[0].load().answers == ("a",)
  for bad in (found[-1], last):
    with pytest.raises(UserError, match="got a .*tar"):
      bad.load()


def test_img2dataset_tars_are_read_as_they_come(tmp_path):
  """Its JSON says where a picture is from; macOS and indexes add files."""
  about = json.dumps({"url": "x", "caption": None, "width": 40}).encode()
  write_tar(
    tmp_path / "0.tar",
    {
      "00.jpg": picture(file_format="jpeg"),
      "01.jpg": picture(file_format="jpeg"),
      "._00.jpg": b"of macOS",
      "__index__.json": b"{}",
      "00.txt": b"\xef\xbb\xbfa red cup \r\n",
      "00.json": about,
      "01.json": about,
      "01.txt": "ein Löffel\n".encode(),
    },
  )
  found = list(web_tars.read_tars(str(tmp_path / "*.tar"), DEFAULTS))
  assert [each.load().answers for each in found] == [
    ("a red cup",),
    ("ein Löffel",),
  ]
  assert found[0].load().question == DEFAULTS.question
