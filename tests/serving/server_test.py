"""Who may ask, what a service says before it is ready, and its end."""

import threading
import time
import urllib.parse

import numpy as np
import pytest
import websockets
from websockets.sync.client import connect

from rt2_jax.errors import UserError
from rt2_jax.serving import numpy_msgpack, server
from tests.serving import served
from tests.serving.http_json_test import act, fetch, request
from tests.serving.openpi_test import ask, seen, talk

TOKEN = "a long secret"


@pytest.mark.parametrize(
  ("host", "token", "is_refused"),
  [
    ("127.0.0.1", "", False),
    ("localhost", "", False),
    ("::1", "", False),
    ("0.0.0.0", TOKEN, False),
    ("0.0.0.0", "", True),
    ("::", "", True),
    ("192.168.0.7", "", True),
    ("robot.lab", "", True),
    ("", "", True),
  ],
)
def test_an_exposed_service_has_a_token(host, token, is_refused):
  if is_refused:
    with pytest.raises(UserError, match="without a token"):
      server.check_exposure(host, token)
  else:
    server.check_exposure(host, token)


def test_a_port_that_is_taken_is_named():
  with server.bind("127.0.0.1", 0) as first:
    port = first.getsockname()[1]
    with pytest.raises(UserError, match=str(port)):
      server.bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_can_use_the_address_that_is_printed(host):
  try:
    listener = server.bind(host, 0)
  except UserError:
    pytest.skip(f"this machine has no {host}")
  with listener:
    parsed = urllib.parse.urlsplit(f"ws://{server.address(listener)}")
    port = listener.getsockname()[1]
  assert (parsed.hostname, parsed.port) == (host, port)


@pytest.fixture(scope="module")
def guarded(policy):
  with served.running(policy, TOKEN) as running:
    yield running


@pytest.mark.parametrize("scheme", ["Api-Key", "Bearer"])
def test_the_token_lets_in(guarded, scheme):
  header = {"Authorization": f"{scheme} {TOKEN}"}
  assert act(guarded, request(), **header)[0] == 200
  assert fetch(guarded, "/metrics", **header)[0] == 200
  with talk(guarded, additional_headers=header) as socket:
    socket.recv(timeout=20)
    assert "actions" in ask(socket, **seen())


@pytest.mark.parametrize(
  "shown", [None, "", "Api-Key wrong", TOKEN, f"Basic {TOKEN}", "Api-Key é"]
)
def test_without_the_token_nobody_gets_in(guarded, shown):
  header = {} if shown is None else {"Authorization": shown}
  for path in ("/metadata", "/metrics"):
    assert fetch(guarded, path, **header)[0] == 401
  assert fetch(guarded, "/act", request(), **header)[0] == 401
  with pytest.raises(websockets.InvalidStatus) as refused:
    talk(guarded, additional_headers=header)
  assert refused.value.response.status_code == 401


def test_probes_need_no_token(guarded):
  assert fetch(guarded, "/healthz")[0] == fetch(guarded, "/readyz")[0] == 200


def test_pages_of_a_browser_are_refused(service):
  assert act_from_page(service) == 403
  with pytest.raises(websockets.InvalidStatus) as refused:
    talk(service, origin="http://evil.example")
  assert refused.value.response.status_code == 403


def act_from_page(running) -> int:
  return fetch(running, "/act", request(), Origin="http://evil.example")[0]


def test_a_compiling_service_is_healthy_and_not_ready(tokenizer):
  policy = served.MarkedPolicy(tokenizer)
  policy.enter.clear()  # compilation waits
  started = []

  def look():
    port = started[0].getsockname()[1]
    early = served.Running(port, None, None, None)
    answers.append(fetch(early, "/healthz")[0])
    answers.append(fetch(early, "/readyz")[0])
    answers.append(fetch(early, "/act", request())[0])
    with pytest.raises(websockets.InvalidStatus) as refused:
      connect(f"ws://127.0.0.1:{port}")
    answers.append(refused.value.response.status_code)
    policy.enter.set()

  answers: list[int] = []
  with pytest.MonkeyPatch.context() as patch:
    bind = server.bind

    def remember(*args):
      started.append(bind(*args))
      thread.start()
      return started[0]

    thread = threading.Thread(target=look)
    patch.setattr(server, "bind", remember)
    with served.running(policy) as running:
      thread.join()
      assert answers == [200, 503, 503, 503]
      assert fetch(running, "/readyz")[0] == 200
  # Every batch size was compiled, before anybody asked.
  assert policy.rows[: len(served.BATCH_SIZES)] == list(served.BATCH_SIZES)


def test_the_end_answers_what_was_asked_and_closes_the_rest(tokenizer):
  policy = served.MarkedPolicy(tokenizer)
  with (
    served.running(policy) as running,
    talk(running) as asking,
    talk(running) as idle,
  ):
    for socket in (asking, idle):
      socket.recv(timeout=20)
    policy.enter.clear()
    policy.entered.clear()
    asking.send(numpy_msgpack.packb(seen(3)))
    assert policy.entered.wait(20)
    running.stop()
    while running.service.ready:
      time.sleep(0.001)
    idle.send(numpy_msgpack.packb(seen(4)))
    assert "not ready" in idle.recv(timeout=20)
    policy.enter.set()
    answer = numpy_msgpack.unpackb(asking.recv(timeout=20))
    expected = served.marked(policy, served.image(3))
    np.testing.assert_array_equal(answer["actions"], expected)
    with pytest.raises(websockets.ConnectionClosed) as closed:
      asking.recv(timeout=20)
    assert closed.value.rcvd.code == 1012  # service restart
