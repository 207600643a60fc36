"""A log that another process is writing."""

from rt2_jax.clusters import log_lines


def test_whole_lines_come_once(tmp_path):
  path = tmp_path / "log"
  follower = log_lines.Follower(path)
  assert list(follower.new_lines()) == []
  path.write_bytes(b"one\ntwo \xc3")
  assert list(follower.new_lines()) == ["one"]
  with path.open("ab") as file:
    file.write(b"\xbc\nthree\n")
  assert list(follower.new_lines()) == ["two \u00fc", "three"]
  later = log_lines.Follower(path)
  later.skip_to_end()
  assert list(later.new_lines()) == []
  assert log_lines.last(path, 2) == "two \u00fc\nthree"
  assert log_lines.last(tmp_path / "none", 2) == ""
