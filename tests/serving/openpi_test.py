"""openpi's protocol: its frames, its refusals, and its own client."""

import asyncio
import json
import subprocess

import numpy as np
import pytest
import websockets
from websockets.sync.client import connect

from rt2_jax.policy import Policy
from rt2_jax.serving import numpy_msgpack, openpi
from rt2_jax.serving import service as service_module
from tests.serving import served


def talk(running, **options):
  url = f"ws://127.0.0.1:{running.port}"
  return connect(url, compression=None, max_size=None, **options)


def ask(socket, **fields):
  """Sends an observation and returns the answer, a dict or a text."""
  socket.send(numpy_msgpack.packb(fields))
  answer = socket.recv(timeout=20)
  return answer if isinstance(answer, str) else numpy_msgpack.unpackb(answer)


def seen(seed=0, **fields):
  return {
    "observation/image": served.image(seed),
    "prompt": "pick apple",
    **fields,
  }


@pytest.fixture
def socket(service):
  with talk(service) as socket:
    socket.metadata = numpy_msgpack.unpackb(socket.recv(timeout=20))
    yield socket


def test_the_metadata_come_first_and_say_what_a_number_means(socket, policy):
  said = socket.metadata
  assert said["action_space"] == policy.action_space.name
  assert said["action_names"] == list(policy.action_space.names)
  assert said["action_units"][1:] == ["m"] * 3 + ["rad"] * 3 + ["open"]
  assert said["action_low"][1] == policy.action_space.dimensions[1].low
  assert (said["action_dim"], said["action_horizon"]) == (8, served.HORIZON)
  assert said["control_hz"] == 5.0 and said["cameras"] == {"primary": [24, 32]}
  roboarena = {
    "image_resolution": [24, 32],
    "needs_wrist_camera": False,
    "n_external_cameras": 1,
    "needs_stereo_camera": False,
    "needs_session_id": False,
  }
  assert roboarena.items() <= said.items()
  assert len(said["checkpoint_sha256"]) == 64


def test_an_answer_is_the_policys(socket, policy):
  for seed in range(3):
    answer = ask(socket, **seen(seed))
    expected = served.marked(policy, served.image(seed))
    np.testing.assert_array_equal(answer["actions"], expected)
    assert answer["actions"].dtype == np.float32
    timing = answer["server_timing"]
    assert timing["infer_ms"] >= timing["call_ms"] > 0
    assert timing["passes"] == 1
    assert ("prev_total_ms" in timing) == (seed > 0)


def test_an_answer_is_a_fixed_number_of_arrays(socket):
  """openpi's ActionChunkBroker slices every array's first axis."""
  answer = ask(socket, **seen())
  arrays = [v for v in answer.values() if isinstance(v, np.ndarray)]
  assert [len(each) for each in arrays] == [served.HORIZON]


WRONG = [
  ({"observation/image": np.zeros((8, 8, 3), np.uint8)}, "'primary'"),
  ({"observation/wrist_image": served.image(0)}, "'observation/wrist_image'"),
  ({"prompt": 3}, "an instruction"),
  ({"observation/state": np.zeros(7)}, "a state"),
  ({"endpoint": "infre"}, "did you mean 'infer'"),
  ({"session_id": 3}, "a session"),
  ({"reset": np.zeros(2)}, "a reset of type ndarray"),
  ({"endpoint": np.zeros(2)}, "for endpoint"),
  ({"expects": 3}, "expects"),
  ({"expects": {"action_unit": ["mm"]}}, "did you mean 'action_units'"),
  ({"expects": {"action_units": ["mm"] * 8}}, "action_units ['mm'"),
  ({"expects": {"action_dim": 7}}, "action_dim 7"),
  ({"expects": {"cameras": {"primary": [48, 64]}}}, "cameras {'primary'"),
  ({"expects": {"action_names": ["x", "y"]}}, "action_names ['x', 'y']"),
  ({"expects": {"cameras": {"a": np.zeros(2)}}}, "cameras {'a': [0.0, 0.0]}"),
  ({"expects": {"cameras": np.zeros(1001)}}, "an array of 1001 numbers"),
]


@pytest.mark.parametrize(("fields", "part"), WRONG, ids=[p for _, p in WRONG])
def test_what_does_not_fit_is_named_and_ends_the_connection(
  socket, service, fields, part
):
  refusal = ask(socket, **seen() | fields)
  assert isinstance(refusal, str) and part in refusal
  with pytest.raises(websockets.ConnectionClosed) as closed:
    socket.recv(timeout=20)
  assert closed.value.rcvd.code == 1011
  with talk(service) as another:  # nobody else suffers
    another.recv(timeout=20)
    assert "actions" in ask(another, **seen())


def test_what_fits_a_clients_expectation_is_answered(socket):
  names = ("action_units", "action_names", "cameras", "checkpoint_sha256")
  expects = {name: socket.metadata[name] for name in names}
  expects["action_low"] = np.asarray(socket.metadata["action_low"])
  assert "actions" in ask(socket, **seen(expects=expects))


@pytest.mark.parametrize("frame", ["text", b"\xc1", b"\x01", b""])
def test_a_frame_that_is_no_observation_is_refused(socket, frame):
  socket.send(frame)
  assert "got" in socket.recv(timeout=20)


def test_a_frame_that_is_too_large_is_not_read(socket, service):
  too_large = bytes(service.service.reader.max_bytes + 1)
  with pytest.raises(websockets.ConnectionClosed) as closed:
    socket.send(too_large)
    socket.recv(timeout=20)
  assert closed.value.rcvd.code == 1009


def test_an_error_of_ours_tells_a_client_nothing(socket):
  image = served.image(0)
  image[0, 0, 0] = 255
  answer = ask(socket, **seen() | {"observation/image": image})
  assert answer == "the service failed; its log says why"


def test_a_client_that_never_reads_delays_nobody(tokenizer, monkeypatch):
  """Its answer is never sent; the service ends all the same."""
  monkeypatch.setattr(service_module, "_SEND_S", 0.2)
  policy = served.MarkedPolicy(tokenizer)
  frame = numpy_msgpack.packb(seen())

  async def main():
    service = served.make_service(policy)
    service.start()
    stuck, sent = asyncio.Event(), []

    async def receive():
      return {"type": "websocket.receive", "bytes": frame}

    def send_until(count):
      async def send(message):
        if message["type"] == "websocket.send":
          sent.append(message)
          if len(sent) == count:
            stuck.set()
            await asyncio.Event().wait()

      return send

    scope = {"type": "websocket", "headers": [], "path": "/"}
    socket = openpi.WebSocket(scope, connecting(receive), send_until(2))
    task = asyncio.create_task(openpi.serve(socket, service))
    await asyncio.wait_for(stuck.wait(), 20)
    pictures = {"primary": served.image(1)}
    for _ in range(3):
      session = service.open_session()
      answering = service.act(session, "test", pictures, "go", None)
      await asyncio.wait_for(answering, 2)
    await asyncio.wait_for(service.close(), 5)
    task.cancel()

  asyncio.run(main())


def connecting(receive):
  """The messages of `receive`, after that of a handshake."""
  first = [{"type": "websocket.connect"}]

  async def with_connect():
    return first.pop() if first else await receive()

  return with_connect


def test_a_session_outlives_its_connection_until_it_is_reset(tokenizer):
  policy = served.MarkedPolicy(tokenizer, history=2)

  def frames(running, seed, **fields):
    with talk(running) as socket:
      socket.recv(timeout=20)
      answer = ask(socket, **seen(seed, session_id="arm", **fields))
    assert isinstance(answer, dict), answer
    shown = policy.seen[-1].image[0]
    return [next(s for s in range(9) if _is(each, s)) for each in shown]

  with served.running(policy) as running:
    assert frames(running, 0) == [0, 0]
    assert frames(running, 1) == [0, 1]
    assert frames(running, 2, reset=True) == [2, 2]
    with talk(running) as socket:
      socket.recv(timeout=20)
      reset = ask(socket, endpoint="reset", session_id="arm")
      assert reset == "reset successful"
    assert frames(running, 3) == [3, 3]


def _is(image, seed) -> bool:
  return bool((image == served.image(seed)).all())


CLIENT = """
import json, sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
port, file, instruction = sys.argv[1:]
policy = WebsocketClientPolicy("127.0.0.1", int(port))
horizon = policy.get_server_metadata()["action_horizon"]
images = np.load(file)
actions = []
for image in images:
  observation = {"observation/image": image, "prompt": instruction}
  broker = ActionChunkBroker(policy, horizon)
  actions.append([broker.infer(observation)["actions"] for _ in range(horizon)])
np.save(file, np.asarray(actions))
try:
  policy.infer({"observation/image": images[0][:4], "prompt": instruction})
except RuntimeError as error:
  print(json.dumps({"numpy": np.__version__, "error": str(error)}))
"""


def test_the_real_client_gets_the_policys_own_actions(
  run, openpi_python, tmp_path
):
  policy = Policy.from_checkpoint(run)
  images = np.stack([served.image(seed) for seed in range(6)])
  file = tmp_path / "images.npy"
  np.save(file, images)
  with served.running(policy, sizes=(1,)) as running:
    done = subprocess.run(
      [openpi_python, "-c", CLIENT, str(running.port), file, "pick apple"],
      capture_output=True,
      text=True,
      timeout=120,
    )
  assert done.returncode == 0, done.stderr[-2000:]
  said = json.loads(done.stdout)
  assert said["numpy"].startswith("1.") and "'primary'" in said["error"]
  actions = np.load(file)
  for image, chunk in zip(images, actions, strict=True):
    seen = served.Observation({"primary": image[None]}, "pick apple")
    np.testing.assert_array_equal(chunk, policy.act([seen])[0])
  assert len(np.unique(actions, axis=0)) > 1  # it looks at the images
