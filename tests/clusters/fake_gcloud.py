"""Stands in for `gcloud`: queued resources that play a script, local workers.

The folder FAKE_CLOUD holds `plan.json` and `state.json`, which a test may
change at any time:

  creations   for each `create`: the states of the resource, one per `describe`
              (the last one stays), or {"error": message} to refuse it
  failure     the cloud's reason for the state FAILED
  node        the state of every TPU VM; a new one is not PREEMPTED
  lost        how many of the next connections break
  workers     of each node

`ssh` runs its command here, once for each worker, with a home of its own.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])


def read(name: str) -> dict:
  path = CLOUD / f"{name}.json"
  return json.loads(path.read_text()) if path.exists() else {}


def write(name: str, value: dict):
  (CLOUD / f"{name}.json").write_text(json.dumps(value))


def option(name: str, default: str = "") -> str:
  found = [a for a in sys.argv if a.startswith(f"--{name}=")]
  return found[-1].partition("=")[2] if found else default


def fail(message: str, code: int = 1):
  print(f"ERROR: (gcloud.compute.tpus) {message}", file=sys.stderr)
  sys.exit(code)


def homes(node: str) -> list[pathlib.Path]:
  count = read("plan").get("workers", 2)
  return [CLOUD / "homes" / f"{node}-w-{n}" for n in range(count)]


def create(name: str):
  state, plan = read("state"), read("plan")
  if name in state.get("resources", {}):
    fail(f"ALREADY_EXISTS: Resource '{name}' already exists")
  made = state.get("made", 0)
  states = plan["creations"][min(made, len(plan["creations"]) - 1)]
  if isinstance(states, dict):
    fail(states["error"])
  if plan.get("node") == "PREEMPTED":
    write("plan", plan | {"node": "READY", "lost": 0})
  count = int(option("node-count", "1"))
  nodes = [f"{name}-{n}" for n in range(count)] if count > 1 else [name]
  for node in nodes:
    for home in homes(node):  # a new machine has a new disk
      shutil.rmtree(home, ignore_errors=True)
      home.mkdir(parents=True)
  write("state", {"made": made + 1, "resources": {name: states}})


def describe(name: str):
  state = read("state")
  states = state.get("resources", {}).get(name)
  if not states:
    fail(f"NOT_FOUND: Resource '{name}' was not found")
  now, *later = states
  state["resources"][name] = later or [now]
  write("state", state)
  answer = {"state": now}
  if now == "FAILED":
    answer["failedData"] = {"error": {"message": read("plan")["failure"]}}
  print(json.dumps({"name": name, "state": answer}))


def delete(name: str):
  state = read("state")
  if state.get("resources", {}).pop(name, None) is None:
    fail(f"NOT_FOUND: Resource '{name}' was not found")
  write("state", state)


def workers(node: str) -> list[pathlib.Path]:
  """Homes of the workers that are meant, if the connection holds."""
  plan = read("plan")
  if plan.get("lost", 0):
    write("plan", plan | {"lost": plan["lost"] - 1})
    fail("Connection closed by 10.0.0.2 port 22 exited with [255]", 255)
  which = option("worker")
  return homes(node) if which == "all" else [homes(node)[int(which)]]


def scp(source: str, place: str):
  node, _, folder = place.partition(":")
  for home in workers(node):
    shutil.copy(source, home / folder)


def ssh(node: str):
  for home in workers(node):
    done = subprocess.run(
      ["bash", "-c", option("command")],
      env=os.environ | {"HOME": str(home)},
      cwd=home,
      capture_output=True,
      text=True,
    )
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode:
      sys.exit(done.returncode)


def main():
  with (CLOUD / "calls").open("a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\n")
  _, _, kind, verb, *arguments = sys.argv[1:]
  arguments = [a for a in arguments if not a.startswith("--")]
  if kind == "queued-resources":
    {"create": create, "describe": describe, "delete": delete}[verb](*arguments)
  elif verb == "describe":
    print(read("plan").get("node", "READY"))
  else:
    {"ssh": ssh, "scp": scp}[verb](*arguments)


if __name__ == "__main__":
  main()
