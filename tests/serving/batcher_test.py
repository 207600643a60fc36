"""Requests share device calls, keep their order, and never wait for others."""

import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest

from rt2_jax.errors import UserError
from rt2_jax.observation import Observation
from rt2_jax.serving.batcher import Batcher, UnavailableError

SIZES = (1, 4)


class Recorder:
  """A policy that answers with the first pixel of each frame it was shown."""

  def __init__(self):
    self.calls: list[list[list[int]]] = []
    self.drafts: list[list] = []
    self.open = threading.Event()
    self.open.set()

  def __call__(self, observations, drafts):
    assert self.open.wait(10)
    seen = [
      each.images["primary"][:, 0, 0, 0].tolist() for each in observations
    ]
    self.calls.append(seen)
    self.drafts.append(list(drafts))
    if any(frames[-1] == 255 for frames in seen):
      raise UserError("got a marked picture")
    passes = [1 if draft is None else 2 for draft in drafts]
    return [""] * len(seen), np.float32([[f] for f in seen]), passes


def frame(mark: int) -> Observation:
  return Observation({"primary": np.full((1, 8, 8, 3), mark, np.uint8)}, "go")


def serve(check, history=1, **options):
  """Runs `check(batcher, policy)` in an event loop of its own."""

  async def main():
    policy = Recorder()
    batcher = Batcher(policy, history, SIZES, **options)
    batcher.start()
    try:
      return await asyncio.wait_for(check(batcher, policy), 20)
    finally:
      policy.open.set()
      await batcher.close()

  return asyncio.run(main())


async def call_that_waits(batcher, policy, robot):
  """Asks with mark 0, in a device call that lasts until `policy.open`."""
  policy.open.clear()
  answer = batcher.submit(robot, frame(0))
  while batcher.num_waiting:
    await asyncio.sleep(0.001)
  return answer


def test_robots_share_a_call_of_a_known_size():
  async def check(batcher, policy):
    robots = [batcher.open_session() for _ in range(3)]
    answers = await asyncio.gather(
      *(batcher.submit(robot, frame(i)) for i, robot in enumerate(robots))
    )
    # Rows are filled up with another robot's, and its answer is not sent.
    assert policy.calls == [[[0], [1], [2], [0]]]
    assert [a.actions.tolist() for a in answers] == [[[0]], [[1]], [[2]]]
    assert {a.rows for a in answers} == {3}

  serve(check)


def test_a_call_waits_no_longer_than_the_deadline():
  async def check(batcher, policy):
    asking, late = batcher.open_session(), batcher.open_session()
    await asyncio.gather(*(batcher.submit(s, frame(0)) for s in (asking, late)))
    answer = await batcher.submit(asking, frame(1))
    assert 0.05 <= answer.queue_s < 0.5  # for the robot that asked before
    assert policy.calls[1:] == [[[1]]]

  serve(check, deadline_s=0.05)


def test_a_robot_alone_waits_for_nobody():
  async def check(batcher, policy):
    _idle = [batcher.open_session() for _ in range(3)]
    answer = await batcher.submit(batcher.open_session(), frame(1))
    assert answer.queue_s < 5

  serve(check, deadline_s=30)


def test_a_robots_requests_keep_their_order_and_never_share_a_call():
  async def check(batcher, policy):
    one, other = batcher.open_session(), batcher.open_session()
    pending = [batcher.submit(one, frame(i)) for i in range(3)]
    pending.append(batcher.submit(other, frame(7)))
    answers = await asyncio.gather(*pending)
    assert [a.actions[0, 0] for a in answers] == [0, 1, 2, 7]
    assert policy.calls[0][:2] == [[0], [7]]
    assert [call[0] for call in policy.calls[1:]] == [[1], [2]]

  serve(check, deadline_s=0.01)


def test_a_full_queue_refuses_at_once():
  async def check(batcher, policy):
    first = await call_that_waits(batcher, policy, batcher.open_session())
    waiting = [batcher.submit(batcher.open_session(), frame(i)) for i in (1, 2)]
    with pytest.raises(UnavailableError, match="can wait here"):
      batcher.submit(batcher.open_session(), frame(3))
    policy.open.set()
    answers = await asyncio.gather(first, *waiting)
    assert [a.actions[0, 0] for a in answers] == [0, 1, 2]

  serve(check, queue_length=2)


def test_a_robot_that_has_gone_costs_no_row():
  async def check(batcher, policy):
    first = await call_that_waits(batcher, policy, batcher.open_session())
    gone = batcher.submit(batcher.open_session(), frame(1))
    stays = batcher.submit(batcher.open_session(), frame(2))
    gone.cancel()
    policy.open.set()
    await asyncio.gather(first, stays)
    assert policy.calls == [[[0]], [[2]]]

  serve(check)


def test_only_the_robot_whose_request_fails_gets_the_error():
  async def check(batcher, policy):
    robots = [batcher.open_session() for _ in range(3)]
    marks = (1, 255, 3)
    pending = map(batcher.submit, robots, map(frame, marks))
    good, bad, other = await asyncio.gather(*pending, return_exceptions=True)
    assert (good.actions[0, 0], other.actions[0, 0]) == (1, 3)
    assert isinstance(bad, UserError) and "marked" in str(bad)

  serve(check)


def test_a_session_without_a_history_keeps_no_frames():
  async def check(batcher, _):
    robot, seen = batcher.open_session(), frame(3)
    pixels = weakref.ref(seen.images["primary"])
    assert (await batcher.submit(robot, seen)).actions[0, 0] == 3
    del seen
    await batcher.submit(batcher.open_session(), frame(4))  # the next call
    gc.collect()
    assert pixels() is None and robot.last_chunk is not None

  serve(check)


def test_a_session_keeps_frames_and_the_draft_until_its_reset():
  async def check(batcher, policy):
    robot = batcher.open_session()
    passes = []
    for mark in (1, 2, 3, 4):
      if mark == 4:
        robot.reset()
      passes.append((await batcher.submit(robot, frame(mark))).passes)
    # Before there are three frames the first is repeated.
    frames = [[1, 1, 1], [1, 1, 2], [1, 2, 3], [4, 4, 4]]
    assert policy.calls == [[each] for each in frames]
    assert passes == [1, 2, 2, 1]
    drafts = [d if d is None else d.tolist() for (d,) in policy.drafts]
    assert drafts == [None, [[1, 1, 1]], [[1, 1, 2]], None]

  serve(check, history=3)


def test_an_answer_to_the_last_episode_drafts_nothing_in_the_next():
  async def check(batcher, policy):
    robot = batcher.open_session()
    late = await call_that_waits(batcher, policy, robot)
    robot.reset()
    policy.open.set()
    await late
    assert robot.last_chunk is None

  serve(check)


def test_the_end_finishes_what_waits_and_refuses_the_rest():
  async def check(batcher, policy):
    policy.open.clear()
    robots = [batcher.open_session() for _ in range(6)]
    pending = [batcher.submit(r, frame(i)) for i, r in enumerate(robots)]
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="shutting down"):
      batcher.submit(robots[0], frame(9))
    policy.open.set()
    await closing
    assert [p.result().actions[0, 0] for p in pending] == list(range(6))

  serve(check, deadline_s=30)
