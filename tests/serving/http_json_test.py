"""POST /act in JSON, and what operators ask."""

import asyncio
import base64
import concurrent.futures
import io
import json
import threading
import urllib.error
import urllib.request

import msgspec
import numpy as np
import pytest
from PIL import Image

from rt2_jax.errors import UserError
from rt2_jax.serving import http_json, server
from tests.serving import served
from tests.serving.fuzz_test import post


def fetch(running, path, body=None, **headers):
  """Status and body of an answer."""
  data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
  headers = {"Content-Type": "application/json"} | headers
  url = f"http://127.0.0.1:{running.port}{path}"
  request = urllib.request.Request(url, data, headers)
  try:
    with urllib.request.urlopen(request, timeout=20) as answer:
      return answer.status, answer.read()
  except urllib.error.HTTPError as error:
    with error:
      return error.code, error.read()


def act(running, body, **headers):
  status, answer = fetch(running, "/act", body, **headers)
  return status, json.loads(answer)


def request(seed=0, **fields):
  data = io.BytesIO()
  Image.fromarray(served.image(seed)).save(data, "PNG")
  text = base64.b64encode(data.getvalue()).decode()
  return {"image": text, "instruction": "pick apple", **fields}


@pytest.mark.parametrize("kind", ["file", "pixels", "by camera"])
def test_an_answer_is_the_policys(service, policy, kind):
  body = request(5)
  if kind == "pixels":
    body["image"] = served.image(5).tolist()
  if kind == "by camera":
    body["images"] = {"primary": body.pop("image")}
  status, answer = act(service, body)
  assert status == 200, answer
  expected = served.marked(policy, served.image(5))
  np.testing.assert_array_equal(np.float32(answer["actions"]), expected)
  assert answer["plan"] == "" and answer["timing"]["call_ms"] > 0


WRONG = [
  (request(image="no base64"), "the base64 of"),
  (request(image=base64.b64encode(b"GIF89a").decode()), "no image"),
  (request(image=[[1, 2], [3]]), "rows of pixels"),
  (request(image=[[[0.5]]]), "whole numbers"),
  (request(image=[[[256, 0, 0]]]), "whole numbers"),
  (request(image=[[[-1, 0, 0]]]), "whole numbers"),
  (request(image=[]), "whole numbers"),
  (request(image={}), "whole numbers"),
  (request(image=None), "whole numbers"),
  (request(image=[[[1, 2, 3]] * 9] * 9), "uint8[9, 9, 3]"),
  (request(images={"primary": ""}), "got 'image'"),
  ({"images": [], "instruction": "a"}, "'images' that cannot be read"),
  ({"images": {"wrist": "AAAA"}, "instruction": "a"}, "'wrist' for a camera"),
  ({"instruction": "a"}, "no image of the camera 'primary'"),
  (request(instructoin="a"), "did you mean 'instruction'"),
  (request(instruction=""), "an instruction"),
  (request(state=[1.0]), "a state"),
  (request(state=[0] * 22_000), "bytes of 'state', expected at most 65536"),
  (request(session=""), "a session"),
  (request(reset=1), "a reset of type int"),
  (request(expects={"action_units": ["mm"]}), "action_units ['mm']"),
  ([1], "a JSON object"),
  (b"{", "a JSON object"),
  (b"\xff", "a JSON object"),
  (b"[" * 50_000, "a JSON object"),
  (b'{"image": ' + b"[" * 50_000, "a JSON object"),
  (b'{"state": [1e999]}', "'state' that cannot be read"),
]


@pytest.mark.parametrize(("body", "part"), WRONG, ids=[p for _, p in WRONG])
def test_what_does_not_fit_is_named(service, body, part):
  status, answer = act(service, body)
  assert status == 400 and part in answer["error"]


@pytest.mark.parametrize("shape", [(24, 32, 3), (2, 24, 32, 3), (99,)])
def test_long_lists_are_read_in_parts(shape, monkeypatch):
  monkeypatch.setattr(http_json, "_PART_BYTES", 16)
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

  def read(lists):
    raw = msgspec.Raw(json.dumps(lists).encode())
    return http_json._picture("primary", raw)

  np.testing.assert_array_equal(read(pixels.tolist()), pixels)
  for wrong in (0.5, 256, None, [1, 2]):
    with pytest.raises(UserError, match="pixels"):
      read([*pixels.tolist(), wrong])


def test_an_image_that_is_read_slowly_delays_only_its_robot(
  tokenizer, monkeypatch
):
  """A robot's next request, which is read quickly, comes after it."""
  begun, go_on, read = threading.Event(), threading.Event(), http_json._array

  def read_slowly(raw):
    begun.set()
    assert go_on.wait(20)
    return read(raw)

  monkeypatch.setattr(http_json, "_array", read_slowly)
  policy = served.MarkedPolicy(tokenizer)

  async def main():
    service = served.make_service(policy)
    service.start()
    app = server.make_app(service)

    def ask(seed, **fields):
      body = json.dumps(request(seed, **fields)).encode()
      return asyncio.create_task(post(app, body))

    slow = ask(1, session="arm", image=served.image(1).tolist())
    assert await asyncio.to_thread(begun.wait, 20)
    after = ask(2, session="arm")
    assert (await ask(3))[0] == 200
    go_on.set()
    assert (await slow)[0] == (await after)[0] == 200
    await service.close()

  asyncio.run(main())
  for seen, seed in zip(policy.seen, (3, 1, 2), strict=True):
    np.testing.assert_array_equal(seen.image[0, 0], served.image(seed))


def test_other_types_of_content_are_refused(service):
  """A page's form cannot send this type without asking."""
  status, answer = act(service, request(), **{"Content-Type": "text/plain"})
  assert status == 400 and "'text/plain'" in answer["error"]


def test_a_type_of_content_has_no_case(service):
  headers = {"Content-Type": "Application/JSON; charset=UTF-8"}
  assert act(service, request(), **headers)[0] == 200


def test_a_body_that_is_too_large_is_not_read(service):
  too_large = bytes(service.service.reader.max_bytes + 1)
  status, answer = act(service, too_large)
  assert status == 413 and "bytes" in answer["error"]


def test_an_error_of_ours_tells_a_client_nothing(service):
  image = served.image(0)
  image[0, 0, 0] = 255
  status, answer = act(service, request(image=image.tolist()))
  assert status == 500
  assert answer["error"] == "the service failed; its log says why"


def test_a_full_service_says_so_at_once(tokenizer):
  policy = served.MarkedPolicy(tokenizer)
  with (
    served.running(policy, queue_length=1) as running,
    concurrent.futures.ThreadPoolExecutor(8) as pool,
  ):
    policy.enter.clear()
    asked = [pool.submit(act, running, request(i)) for i in range(6)]
    concurrent.futures.wait(
      asked, return_when=concurrent.futures.FIRST_COMPLETED
    )
    policy.enter.set()
    statuses = [each.result()[0] for each in asked]
  assert set(statuses) == {200, 503}


def test_operators_get_what_they_ask(service):
  assert fetch(service, "/healthz") == (200, b"OK\n")
  assert fetch(service, "/readyz") == (200, b"ready\n")
  status, said = fetch(service, "/metadata")
  assert status == 200
  assert json.loads(said)["action_names"][0] == "terminate"
  assert fetch(service, "/nothing")[0] == 404
  assert fetch(service, "/act")[0] == 405


def test_metrics_count_requests_by_how_they_end(service):
  def count(outcome):
    name = f'rt2_requests_total{{outcome="{outcome}",protocol="http"}} '
    lines = fetch(service, "/metrics")[1].decode().splitlines()
    found = [line for line in lines if line.startswith(name)]
    return float(found[0].removeprefix(name)) if found else 0.0

  before = {o: count(o) for o in ("ok", "refused", "failed")}
  act(service, request())
  act(service, request(state=[1.0]))
  after = {o: count(o) - n for o, n in before.items()}
  assert after == {"ok": 1.0, "refused": 1.0, "failed": 0.0}
  text = fetch(service, "/metrics")[1].decode()
  for name in ("queue", "call", "request"):
    assert f'rt2_{name}_seconds_bucket{{le="0.1"}}' in text
  assert "rt2_waiting 0.0" in text
