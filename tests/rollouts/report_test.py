"""The page says what the files say, and nothing in them is HTML."""

import re

import numpy as np

from rt2_jax.rollouts import films, report
from tests.rollouts.results_test import result, save


def test_no_text_of_a_trial_is_html(tmp_path):
  evil = "<script>alert(1)</script> & \"more\" 'of it'"
  one = result("a <b>", {0}, web={evil: 0.5}, plans={("near", 0): evil})
  one |= {"what": evil, "command": evil}
  one["benchmark"]["title"] = one["benchmark"]["notes"] = evil
  trial = one["suites"]["near"]["trials"][1]
  trial |= {"instruction": evil, "goal": evil, "error": evil}
  one["suites"]["near"]["title"] = evil
  filmed(tmp_path, trial)
  save(tmp_path, one)
  text = report.write(tmp_path).read_text()
  assert "<script" not in text and "<b>" in text
  assert len(
    re.findall(r"“&lt;script&gt;alert\(1\)&lt;/script&gt; &amp; ", text)
  )
  assert text.count("&lt;script&gt;") >= 8
  assert "a &lt;b&gt;" in text and "a <b>" not in text


def filmed(folder, trial):
  trial["film"] = "films/a <b>/near_1.gif"
  images = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(3)]
  films.write_film(images, folder / trial["film"], 4.0)


def test_the_number_of_a_failure_leads_to_its_film(tmp_path):
  one = result("a <b>", {0})
  filmed(tmp_path, one["suites"]["near"]["trials"][1])
  save(tmp_path, one)
  text = report.write(tmp_path).read_text()
  (anchor, count), *others = re.findall(r'<a href="#(\w+)">(\d+)</a>', text)
  assert not others and int(count) > 0
  figure = text[text.index(f'<figure id="{anchor}">') :]
  outcome = one["suites"]["near"]["trials"][1]["outcome"]
  assert outcome in figure[: figure.index("</figure>")]


def rows(text):
  """Cells of each table's row by its first cell."""
  found = {}
  for row in re.findall(r"<tr.*?</tr>", text, re.DOTALL):
    cells = re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row, re.DOTALL)
    first, *others = [re.sub(r"<.*?>", "", c).strip() for c in cells]
    found.setdefault(first, []).append(others)
  return found


def test_means_and_tags_are_rows(tmp_path):
  plans = {("far", 0): "x = 4", ("far", 1): "x = 1", ("far", 2): "x = 4"}
  save(tmp_path, result("mine", {0, 1}, plans=plans), result("rest", ()))
  text = report.write(tmp_path).read_text()
  found = rows(text)
  assert found["suite"][0] == ["mine", "rest"]
  assert found["easy places, average"] == [["50 22 to 78", "0 0 to 32"]]
  assert found["mean of both"] == [["50", "0"]]
  assert found["all suites, by parity"] == [[]]
  assert found["even"] == [["50 19 to 81", "0 0 to 39"]]
  assert found["elsewhere"] == [["6", "12"]]
  assert found["broken off"] == [["0", "0"]]
  # Of four plans two are right, and one of these trials succeeded.
  assert found["far"][-1] == ["2 of 4 1 of 2, 1 of 2"]
  assert "How many plans were right" in text
  assert "viewport" in text


def test_without_plans_and_web_their_sections_are_left_out(tmp_path):
  save(tmp_path, result("rest", ()))
  text = report.write(tmp_path).read_text()
  assert "Plans</h2>" not in text and "Questions about" not in text
  assert "Broken off</h2>" not in text
