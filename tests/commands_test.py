"""What the documentation shows exists: commands, flags, links, messages.

Programs, their flags and their values are looked up, not run: seconds for all.
"""

import ast
import pathlib
import re
import shlex

import pytest

from launch import config_file
from rt2_jax.clusters.code import check_name
from rt2_jax.errors import UserError
from rt2_jax.train_config import with_defaults
from tests.conftest import ROOT

PAGES = [
  *("README.md", "WORKSPACE.md", "CONTRIBUTING.md", "data/README.md"),
  *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
PROGRAMS = [
  str(path.relative_to(ROOT))
  for folder in ("launch", "data")
  for path in sorted((ROOT / folder).glob("*.py"))
]
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```", re.M | re.S)
INDENTED = re.compile(r"^ +(python3? (?:\\\n|.)*)", re.M)
INLINE = re.compile(r"`((?:python3?|make|rt2-[\w-]+) [^`]+)`")
LOCAL = ["python", "launch/pod.py", "run", "--backend=local"]
LOCAL += ["--config=configs/bridge_debug.py"]
# Flags that absl, or ml_collections for a config's fields, define.
EVERYWHERE = {"help", "flagfile", "config"}


def commands(text: str) -> list[list[str]]:
  """The words of every command in a page or a docstring."""
  shown = "\n".join(BLOCK.findall(text))
  lines = shown.replace("\\\n", " ").splitlines()
  lines += [c.replace("\\\n", " ") for c in INDENTED.findall(text)]
  lines += INLINE.findall(text)
  found = []
  for line in lines:
    line = re.split(r" \| | && |  # ", re.sub(r"^\$ ", "", line.strip()))[0]
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
      words.pop(0)  # a variable
    if words[:1] == ["taskset"]:
      words = words[3:]
    if words and words[0].startswith("rt2-"):
      words = ["python", installed(words[0]), *words[1:]]
    if words and words[0] in ("python", "python3", "make"):
      found.append(words)
  return found


def installed(command: str) -> str:
  """The program of a command such as rt2-train."""
  name = command.removeprefix("rt2-").replace("-", "_")
  paths = [f"{folder}/{name}.py" for folder in ("launch", "data")]
  return next((path for path in paths if path in PROGRAMS), paths[0])


def flags_of(path: pathlib.Path) -> set[str]:
  """The flags that a program defines; importers share some."""
  tree = ast.parse(path.read_text())
  defined = {
    node.args[0].value
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
    and getattr(node.func, "attr", "").startswith("DEFINE_")
    and node.args
    and isinstance(node.args[0], ast.Constant)
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module in ("launch", "data"):
      for name in node.names:
        beside = ROOT / node.module / f"{name.name}.py"
        defined |= flags_of(beside) if beside != path else set()
  return defined | EVERYWHERE


def program(words: list[str]) -> tuple[pathlib.Path, list[str]] | None:
  """The program that `python …` starts, and its arguments; None: not ours."""
  if words[1] == "-m":
    path, rest = words[2].replace(".", "/") + ".py", words[3:]
  else:
    path, rest = words[1], words[2:]
  ours = path.startswith(("launch/", "data/"))
  return (ROOT / path, rest) if ours else None


def config_fields() -> set[str]:
  """The names in every level of a config that has all defaults."""
  from configs import rt2_paligemma_3b

  names = set()

  def walk(value):
    if isinstance(value, dict):
      for key, inner in value.items():
        names.add(key)
        walk(inner)

  walk(with_defaults(rt2_paligemma_3b.get_config().to_dict()))
  return names


def check_pod(arguments: list[str]):
  """Checks what pod.py checks at its start, and each host's rows."""
  given = dict(
    argument[2:].split("=", 1) for argument in arguments if "=" in argument
  )
  check_name(given.get("name", "x"))
  if given.get("backend") != "local":
    return
  config = config_file.read(given["config"])
  for name, source in config["sources"].items():
    path = given.get(f"config.sources.{name}.path", source["path"])
    assert path.startswith(("/", "$")), f"{path} is not in the shipped code"
  rows = int(given.get("config.batch_size", config["batch_size"]))
  assert rows % int(given["num_processes"]) == 0, arguments


def check(words: list[str], targets: set[str], fields: set[str]):
  if words[0] == "make":
    for word in words[1:]:
      assert "=" in word or word in targets, f"no target {word}: {words}"
    return
  started = program(words)
  if started is None:
    return
  path, arguments = started
  assert path.is_file(), f"no program {path}: {words}"
  known = flags_of(path)
  for argument in arguments:
    if not argument.startswith("--"):
      continue
    name, _, value = argument[2:].partition("=")
    first, *rest = name.split(".")
    plain = first if first in known else first.removeprefix("no")
    assert plain in known, f"no flag --{name} in {path.name}: {words}"
    if rest and "FIELD" not in rest:
      source = rest[1:2] if rest[0] in ("sources", "web") else []
      unknown = set(rest) - fields - set(source)
      assert not unknown, f"no field {unknown} of a config: {words}"
    if name == "config" and value.startswith("configs/"):
      file = value.partition(":")[0]
      assert file == "configs/x.py" or (ROOT / file).is_file(), words
  if path.name == "pod.py":
    check_pod(arguments)


@pytest.fixture(scope="module")
def known():
  targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M)
  return set(targets), config_fields()


def test_commands_are_found_and_wrong_ones_refused(known):
  page = (
    "```bash\npython launch/train.py --config=configs/nope.py \\\n  -v\n```"
  )
  (words,) = commands(page)
  for wrong in (
    words,
    ["python", "launch/trian.py"],
    ["python", "-m", "data.make_tabletop", "--outputdir=x"],
    ["python", "launch/train.py", "--config.optimizer.b3=1"],
    ["make", "quikstart"],
    *commands("`rt2-trian --help`"),
    *commands("`rt2-train --workdri=x`"),
    [*LOCAL, "--config.sources.bridge.path=/x", "--num_processes=4"],
    [*LOCAL, "--num_processes=2"],
    ["python", "launch/pod.py", "create", "--name=3b"],
  ):
    with pytest.raises((AssertionError, UserError)):
      check(wrong, *known)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_exists(page, known):
  for words in commands((ROOT / page).read_text()):
    check(words, *known)


def test_pages_show_commands():
  assert len(commands((ROOT / "README.md").read_text())) > 9
  assert sum(len(commands((ROOT / page).read_text())) for page in PAGES) > 40


@pytest.mark.parametrize("path", PROGRAMS)
def test_every_command_of_a_docstring_exists(path, known):
  docstring = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
  for words in commands(docstring):
    check(words, *known)


def test_troubleshooting_quotes_errors_that_exist():
  page = (ROOT / "docs/troubleshooting.md").read_text()
  source = "".join(
    path.read_text()
    for folder in ("rt2_jax", "launch", "data")
    for path in (ROOT / folder).rglob("*.py")
  )
  quoted = re.findall(r"^\| `([^`]+)`", page, re.M)
  assert len(quoted) > 8
  for words in quoted:
    assert words in source, words


def test_the_site_holds_every_page_and_names_real_modules():
  navigation = (ROOT / "mkdocs.yml").read_text()
  for path in (ROOT / "docs").rglob("*.md"):
    page = str(path.relative_to(ROOT / "docs"))
    if path.name != "summary.md":  # a table that a program wrote
      assert f": {page}\n" in navigation, page
    for name in re.findall(r"^::: ([\w.]+)$", path.read_text(), re.M):
      module = (
        name.rpartition(".")[0] if name.split(".")[-1][0].isupper() else name
      )
      assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), name


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
  text = (ROOT / page).read_text()
  folder = (ROOT / page).parent
  for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", text):
    (name,) = filter(None, target)
    assert (folder / name).exists(), name
  ours = r"`((?:rt2_jax|launch|data|tests|configs)/[\w/.-]+)`"
  for name in set(re.findall(ours, text)):
    assert (ROOT / name).exists(), name
