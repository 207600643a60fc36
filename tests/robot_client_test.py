"""A robot's connection: answers, refusals, and connections that break."""

import contextlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from websockets.sync.server import serve as serve_sockets

from rt2_jax.errors import UserError
from rt2_jax.robot_client import RobotClient, ServedPolicy, UnansweredError
from rt2_jax.serving import numpy_msgpack
from tests.conftest import ROOT
from tests.serving import served


@pytest.fixture(scope="module")
def policy(tokenizer):
  return served.MarkedPolicy(tokenizer, history=2)


@pytest.fixture(scope="module")
def running(policy):
  with served.running(policy, deadline_s=0.5) as running:
    yield running


def address(running) -> str:
  return f"ws://127.0.0.1:{running.port}"


def test_an_answer_is_the_policys(running, policy):
  client = RobotClient(address(running))
  reply = client.act(served.observation(3), reset=True)
  expected = served.marked(policy, served.image(3))
  np.testing.assert_array_equal(reply.actions, expected)
  client.close()


def test_another_connection_is_the_same_session(running, policy):
  client = RobotClient(address(running))
  client.act(served.observation(1), reset=True)
  client.close()
  client.act(served.observation(2))
  client.close()
  shown = policy.seen[-1].image[0]
  np.testing.assert_array_equal(shown[0], served.image(1))
  np.testing.assert_array_equal(shown[1], served.image(2))


def test_what_a_robot_was_written_for_is_compared(running):
  client = RobotClient(address(running), expects={"action_units": ["mm"]})
  with pytest.raises(UserError, match="action_units"):
    client.act(served.observation(0))


def test_a_wrong_image_is_refused_by_name(running):
  client = RobotClient(address(running))
  seen = served.observation(0)
  seen = seen._replace(images={"wrist": seen.images["primary"]})
  with pytest.raises(UserError, match="wrist_image"):
    client.act(seen)
  client.act(served.observation(0))  # it connects again
  client.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", ""])
def test_an_address_that_is_none_is_named(url):
  with pytest.raises(UserError, match="expected one such as"):
    RobotClient(url).metadata()


def test_nobody_there_is_no_mistake_of_the_robot():
  with pytest.raises(UnansweredError, match="ws://127.0.0.1:9"):
    RobotClient("ws://127.0.0.1:9").metadata()


def test_the_token_is_shown(policy):
  with served.running(policy, token="secret") as guarded:
    assert RobotClient(address(guarded), "secret").metadata()
    with pytest.raises(UserError, match="token"):
      RobotClient(address(guarded), "other").metadata()


def test_a_late_answer_is_never_taken_for_the_next():
  """The connection of an answer that was given up is closed."""
  answers = iter([(0.5, 1.0), (0.0, 2.0)])

  def handle(socket):
    socket.send(numpy_msgpack.packb({}))
    for _ in socket:
      delay, value = next(answers)
      time.sleep(delay)
      reply = {"actions": np.full((1, 8), value, np.float32)}
      socket.send(numpy_msgpack.packb(reply))

  with serve_sockets(handle, "127.0.0.1", 0) as slow:
    threading.Thread(target=slow.serve_forever, daemon=True).start()
    client = RobotClient(f"ws://127.0.0.1:{slow.socket.getsockname()[1]}")
    with pytest.raises(UnansweredError):
      client.act(served.observation(0), timeout_s=0.1)
    reply = client.act(served.observation(0), timeout_s=5)
    assert (reply.actions == 2.0).all()
    client.close()


@contextlib.contextmanager
def foreign(said):
  """Runs a service that says `said` at each connection, and its address."""

  def handle(socket):
    socket.send(numpy_msgpack.packb(said))
    for _ in socket:
      reply = {"actions": np.zeros((1, 8), np.float32)}
      socket.send(numpy_msgpack.packb(reply))

  with serve_sockets(handle, "127.0.0.1", 0) as service:
    threading.Thread(target=service.serve_forever, daemon=True).start()
    yield f"ws://127.0.0.1:{service.socket.getsockname()[1]}"


@pytest.mark.parametrize("said", [{}, {"action_dim": 7}])
def test_a_service_that_does_not_say_its_units_is_named(said):
  with foreign(said) as url, pytest.raises(UserError, match="serve.py"):
    RobotClient(url).metadata()


def test_a_policy_is_not_exchanged_behind_a_robots_back():
  said = {"action_units": ["m"], "checkpoint_step": 1000}
  with foreign(said) as url:
    client = RobotClient(url)
    client.act(served.observation(0))
    client.close()
    client.act(served.observation(0))
    client.close()
    said["checkpoint_step"] = 2000
    with pytest.raises(UserError, match="checkpoint_step is 2000, was 1000"):
      client.act(served.observation(0))


def test_robots_of_a_rollout_share_calls(running, policy):
  robots = ServedPolicy(address(running))
  seen = [served.observation(seed, history=2) for seed in range(4)]
  robots.act(seen)  # from now on the service expects four
  policy.rows.clear()
  plans, actions = robots.act(seen)
  assert plans == [""] * 4 and policy.rows == [4]
  expected = [served.marked(policy, served.image(seed)) for seed in range(4)]
  np.testing.assert_array_equal(actions, expected)


def test_a_rollout_names_a_service_that_does_not_answer(policy):
  with pytest.raises(UserError, match="does not answer"):
    ServedPolicy("ws://127.0.0.1:9")
  with served.running(policy) as running:
    robots = ServedPolicy(address(running))
  with pytest.raises(UserError, match="does not answer"):
    robots.act([served.observation(0, history=2)])


def test_a_robot_needs_no_jax():
  program = (
    "import rt2_jax.robot_log, sys; "
    "print(*{m.split('.')[0] for m in sys.modules})"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  loaded = set(done.stdout.split())
  heavy = {"jax", "tensorflow", "torch", "PIL", "starlette", "sentencepiece"}
  assert "numpy" in loaded and not heavy & loaded
