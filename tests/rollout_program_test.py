"""`launch/rollout.py`: numbers, films and a page that stands alone."""

import dataclasses
import functools
import html.parser
import json
import re
import subprocess
import sys
import urllib.parse

import pytest
from PIL import Image

from rt2_jax.action_spaces import RT1, TABLETOP
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.checkpoint_meta import FORMAT
from rt2_jax.envs.tabletop import pictures
from rt2_jax.envs.tabletop.benchmark import Tabletop
from rt2_jax.envs.tabletop.pictures import Pictures
from rt2_jax.models import variants
from rt2_jax.observation import ObservationSpec
from rt2_jax.prompt import ROBOT_TEMPLATE
from rt2_jax.rollouts import report, results
from tests import tiny_models
from tests.conftest import ROOT

SUITES = "--suites=seen,symbols_numbers,people"


def start(*flags: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "launch/rollout.py", *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def save_run(folder, tokenizer, prefix_length=48, history=1, space=TABLETOP):
  """A checkpoint of a random model that acts on the tabletop."""
  model = variants.vlm(
    "tiny/16",
    "gemma_tiny",
    image_size=32,
    vocab_size=tokenizer.vocab_size,
  )
  model = dataclasses.replace(model, num_images=history)
  spec = ObservationSpec(history=history).to_dict()
  actions = ActionTokenizer(space, tokenizer.action_route("rare"))
  meta = {
    "config": {
      "sources": {"tabletop": {}},
      "web": {"name": {}, "fact": {}},
      "pretrained": str(folder / "vlm"),
    },
    "model": dataclasses.asdict(model),
    "prompt": {
      "prefix_length": prefix_length,
      "suffix_length": 9,
      "template": ROBOT_TEMPLATE,
    },
    "action_tokenizers": {"tabletop": actions.to_dict()},
    "observation": spec,
    "observations": {"tabletop": spec},
    "tokenizer_sha256": tokenizer.sha256,
    "format": FORMAT,
  }
  params = tiny_models.params(model)
  checkpoints = Checkpoints(folder / "checkpoints")
  checkpoints.save(7, params, {"count": params}, meta, tokenizer.model)
  checkpoints.close()
  (folder / "evaluation").mkdir()
  for name, step in (("name", 7), ("fact", 6)):  # one of another checkpoint
    path = folder / f"evaluation/{name}.json"
    path.write_text(json.dumps({"step": step, "accuracy": 0.625}))
  before = folder / "vlm/evaluation"
  before.mkdir(parents=True)
  (before / "name.json").write_text('{"step": 3, "accuracy": 0.75}')
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
  return save_run(tmp_path_factory.mktemp("runs") / "random <b>", tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
  """Results of a run and, from another call, of two baselines."""
  output = tmp_path_factory.mktemp("rollouts") / "new"
  common = [SUITES, f"--output={output}", "--episodes=2", "--image_size=48"]
  common += ["--max_steps=20", "--films=1", "--num_envs=8"]
  for flags in ([f"--policy={run}"], ["--policy=null,oracle"]):
    done = start(*common, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"report: {output / 'report.html'}" in done.stdout
    assert "8/8" in done.stderr  # the bar's last line
  return output


class Page(html.parser.HTMLParser):
  """Tables as lists of rows, and everything that is loaded or linked."""

  def __init__(self):
    super().__init__()
    self.tables, self.loaded, self.links = [], [], []
    self.cell = None

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.loaded += [attrs[k] for k in ("src", "data") if k in attrs]
    assert tag not in ("script", "link", "iframe")
    if tag == "a":
      self.links.append(attrs["href"])
    if tag == "table":
      self.tables.append([])
    if tag == "tr":
      self.tables[-1].append([])
    if tag in ("td", "th"):
      self.cell = ""

  def handle_data(self, data):
    if self.cell is not None:
      self.cell += data

  def handle_endtag(self, tag):
    if tag in ("td", "th"):
      self.tables[-1][-1].append(self.cell.strip())
      self.cell = None


def test_numbers(folder):
  found = results.read(folder)
  assert list(found) == ["random <b>", "null", "oracle"]
  oracle = json.loads((folder / "oracle.json").read_text())
  names = ["seen", "symbols_numbers", "people_names", "people_roles"]
  assert list(oracle["suites"]) == names
  seen = oracle["suites"]["seen"]
  assert seen["n"] == seen["successes"] == seen["outcomes"]["success"] == 2
  assert seen["interval"] == pytest.approx([0.342, 1.0], abs=1e-3)
  assert len(seen["seeds"]) == 2
  for result in found.values():
    assert result["trials_hash"] == oracle["trials_hash"]
    for name in names:
      assert result["suites"][name]["seeds"] == oracle["suites"][name]["seeds"]
  assert found["null"]["suites"]["seen"]["capped"] == 2
  assert found["null"]["suites"]["seen"]["rate"] == 0.0
  run = found["random <b>"]
  assert len(run["config_hash"]) == 16 and run["what"].endswith("step 7")
  assert run["web"] == {"name": 0.625} and run["web_before"] == {"name": 0.75}


def test_the_table_pools_topics_and_families(folder):
  lines = (folder / "summary.md").read_text().splitlines()
  head, rule, *rows = ([c.strip() for c in x.split("|")[1:-1]] for x in lines)
  assert head == ["", "random <b>", "null", "oracle"] and set(rule) == {"---"}
  rows = {name: cells for name, *cells in rows}
  assert list(rows)[:3] == [
    *("seen tasks (n = 2)", "symbol understanding (n = 2)", "people (n = 4)")
  ]
  assert rows["people (n = 4)"][1:] == ["0 (0 to 49)", "100 (51 to 100)"]
  families = [name for name in rows if name.startswith("all, ")]
  assert sum(int(re.search(r"\d+", name)[0]) for name in families) == 8
  assert rows["web answers"] == ["62 (83% kept)", "", ""]


def test_films(folder):
  for policy in ("null", "oracle", "random <b>"):
    assert len(list((folder / "films" / policy).glob("*.gif"))) == 4
  with Image.open(folder / "films/oracle/people_roles_0.gif") as film:
    assert film.size == (48, 48) and film.n_frames > 4
    assert film.info["duration"] == 200  # ms: five steps a second


def test_the_page_holds_tables_and_pictures_and_needs_nothing_else(folder):
  text = (folder / "report.html").read_text()
  page = Page()
  page.feed(text)
  success, outcomes, web = page.tables
  assert success[0] == ["suite", "random <b>", "null", "oracle"]
  rows = {row[0]: row[1:] for row in success}
  assert rows["seen tasks"][1:] == ["0 0 to 66", "100 34 to 100"]
  assert rows["people, average"][1:] == ["0 0 to 49", "100 51 to 100"]
  assert rows["numbers"][2] == "100 34 to 100"
  counts = {row[0]: row[1:] for row in outcomes}
  assert counts["success"][1:] == ["0", "8"]
  assert counts["nothing touched"][1] == counts["met the step cap"][1] == "8"
  assert web == [["web source", "random <b>"], ["name", "62.5"]]
  assert text.count("<svg") == 2
  assert (folder / "success.svg").read_text() in text
  assert rows["move_to"][1:] == ["0 0 to 49", "100 51 to 100"]
  assert len(page.loaded) == 12  # four suites, three policies, one film each
  assert all(s.startswith("data:image/jpeg;base64,") for s in page.loaded)
  inside = [link for link in page.links if link.startswith("#")]
  assert len(inside) >= 3  # from the table: to a film of each policy, at least
  assert all(f'<figure id="{link[1:]}">' in text for link in inside)
  paths = [urllib.parse.unquote(x) for x in page.links if x not in inside]
  assert len(paths) == 12 and all((folder / x).is_file() for x in paths)
  assert "https://" not in text
  oracle = json.loads((folder / "oracle.json").read_text())
  asked = oracle["suites"]["seen"]["trials"][0]["instruction"]
  assert f"“{asked}”" in text


def test_a_film_that_is_gone(folder, tmp_path):
  (tmp_path / "null.json").write_bytes((folder / "null.json").read_bytes())
  with pytest.raises(ValueError, match="got film .*seen_0.gif.*run it again"):
    report.write(tmp_path)


def contents(folder):
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
  "change",
  [
    ["--seed=1"],
    ["--suites=seen"],
    ["--max_steps=21", "--policy=random"],
  ],
  ids=" ".join,
)
def test_a_call_that_does_not_fit_plays_nothing(folder, change):
  """Earlier results stay as they are; the message names what differs."""
  before = contents(folder)
  common = [SUITES, f"--output={folder}", "--episodes=2", "--image_size=48"]
  done = start(*common, "--max_steps=20", "--policy=oracle", *change)
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "trials/s" not in done.stderr and "numbers:" not in done.stdout
  assert "choose another --output" in done.stderr
  if change != ["--suites=seen"]:
    assert f"{change[0]} " in done.stderr or f"{change[0]})" in done.stderr
  assert contents(folder) == before


def test_other_pictures_of_the_same_things_are_other_trials(monkeypatch):
  known = Pictures.load(ROOT / "data/pictures.zip")
  drawn_again = Pictures(
    known.concepts,
    {style: 255 - atlas for style, atlas in known._atlases.items()},
  )
  benchmark = Tabletop()
  trials = benchmark.trials(["seen"], 2, 0)
  before = benchmark.fingerprint(trials)
  monkeypatch.setattr(pictures, "load", lambda path: drawn_again)
  assert benchmark.trials(["seen"], 2, 0) == trials
  assert benchmark.fingerprint(trials) != before


TOY = ["--benchmark=tests.rollouts.toy:benchmark", "--films=1", "--episodes=2"]


def test_another_benchmark_and_a_function_as_its_policy(tmp_path):
  flags = [*TOY, f"--output={tmp_path}", "--execute=2"]
  done = start(*flags, "--policy=tests.rollouts.toy:act,rest,expert")
  assert done.returncode == 0, done.stderr[-2000:]
  found = results.read(tmp_path)
  assert list(found) == ["tests.rollouts.toy.act", "rest", "expert"]
  mine, rest, expert = found.values()
  for suite in ("near", "middle", "far"):
    assert mine["suites"][suite]["rate"] == 1.0
    assert rest["suites"][suite]["rate"] == 0.0
    seeds = mine["suites"][suite]["seeds"]
    assert rest["suites"][suite]["seeds"] == seeds
  assert mine["trials_hash"] == expert["trials_hash"]
  assert mine["execute"] == 2
  page = Page()
  page.feed((tmp_path / "report.html").read_text())
  success = {row[0]: row[1:] for row in page.tables[0]}
  assert success["mean of both"] == ["100", "0", "100"]
  with Image.open(tmp_path / "films/expert/far_0.gif") as film:
    assert film.size == (8, 8) and film.info["duration"] == 250  # 4 Hz


@pytest.mark.slow
def test_an_exported_folder_acts_as_its_run(tmp_path, tokenizer):
  """A run of two frames acts as well; the runner keeps them for it."""
  run = save_run(tmp_path / "run", tokenizer)
  frames = save_run(tmp_path / "two_frames", tokenizer, history=2)
  converted = tmp_path / "exported"
  command = [sys.executable, "launch/convert.py", "to_hf", f"--workdir={run}"]
  done = subprocess.run(
    [*command, f"--output={converted}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  flags = ["--suites=seen", "--episodes=2", "--image_size=48", "--max_steps=3"]
  policies = f"--policy={run},{converted},{frames}"
  done = start(*flags, f"--output={tmp_path}/out", "--films=0", policies)
  assert done.returncode == 0, done.stderr[-2000:]
  first, second, third = (
    results.read(tmp_path / "out")[name]["suites"]["seen"]["trials"]
    for name in ("run", "exported", "two_frames")
  )
  assert first == second and len(first) == 2
  assert not any(trial["error"] for trial in (*first, *third))


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "got nothing to try, expected --policy"),
    (["--policy=orcle"], "got 'orcle' for --policy.*did you mean 'oracle'"),
    (["--policy=null,null"], "expected another one for each policy"),
    (
      ["--policy=null", "--suites=people_role"],
      "got 'people_role' for suite.*did you mean 'people_roles'",
    ),
    (["--policy=null", "--pictures=no.zip"], "got pictures 'no.zip', which"),
    (
      ["--policy=/nowhere/run"],
      "got '/nowhere/run' for --policy.*run's workdir",
    ),
    (["--policy=tests"], "in /.*tests, expected.*there is no checkpoint"),
    (["--policy=no_lab:act"], "'no_lab:act' for --policy.*PYTHONPATH"),
    (["--policy=tests.rollouts.toy:ac"], "'ac'.*did you mean 'act'"),
    (["--policy=tests.rollouts.toy:SPACE"], "of type ActionSpace.*a function"),
    (["--policy=null", "--benchmark=table"], "'table' for --benchmark"),
    (["--policy=null", "--benchmark=re:sub"], "'re:sub' of type function wit"),
    (["--policy=rest", *TOY, "--image_size=32"], "got --image_size with --be"),
    (["--policy=rest", *TOY, "--execute=3"], "got execute = 3, expected 1 to"),
    (["--policy=null", "extra"], "expected flags only"),
  ],
)
def test_one_clear_error(flags, message, tmp_path):
  done = start(f"--output={tmp_path}/x", *flags)
  assert done.returncode != 0
  said = " ".join((done.stdout + done.stderr).split())
  assert "Traceback" not in said
  functools.reduce(find, message.split(".*"), said)


def find(text: str, part: str) -> str:
  """What follows a part of a text."""
  assert part in text
  return text.partition(part)[2]


@pytest.mark.parametrize(
  ("made", "message"),
  [
    ({"prefix_length": 12}, "tokens, expected at most 12: 'Q: what"),
    ({"space": RT1}, "which acts with ('mode', 'dx'"),
  ],
)
def test_a_model_that_cannot_act_here(made, message, tmp_path, tokenizer):
  run = save_run(tmp_path / "run", tokenizer, **made)
  done = start(f"--output={tmp_path}/x", f"--policy={run}", "--episodes=2")
  assert done.returncode != 0
  assert message in done.stderr and "Traceback" not in done.stderr
