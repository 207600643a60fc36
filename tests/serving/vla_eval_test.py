"""vla-eval's own client and runner against its own server classes."""

import asyncio
import contextlib
import dataclasses

import numpy as np
import pytest
from vla_eval import specs
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark
from vla_eval.connection import Connection
from vla_eval.model_servers.serve import serve_async
from vla_eval.runners.sync_runner import SyncEpisodeRunner

from rt2_jax.action_spaces import LANGUAGE_TABLE, RT2
from rt2_jax.errors import UserError
from rt2_jax.observation import ObservationSpec
from rt2_jax.serving.vla_eval import CONVENTIONS, BenchmarkServer
from tests.serving import served

STEPS = 5


class Stub(StepBenchmark):
  """Shows another image at every step and keeps the actions it gets."""

  def __init__(self):
    super().__init__()
    self.actions = []

  def get_tasks(self):
    return [{"name": "pick apple"}]

  def reset(self, task):
    return 0

  def step(self, action):
    self.actions.append(action["actions"])
    count = len(self.actions)
    return StepResult(obs=count, reward=0.0, done=count == STEPS, info={})

  def make_obs(self, raw_obs, task):
    shown = {"agentview": served.image(raw_obs), "wrist": served.image(99)}
    return {"images": shown, "task_description": task["name"]}

  def check_done(self, step_result):
    return step_result.done

  def get_step_result(self, step_result):
    return {"success": step_result.done}

  def get_metadata(self):
    return {"max_steps": STEPS}


def serve(policy, check):
  """Runs `check(url)` beside vla-eval's server of a policy."""

  async def main():
    service = served.make_service(policy)
    service.start()
    server = BenchmarkServer(service, policy.action_space, "libero")
    with contextlib.closing(served.server.bind("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    task = asyncio.create_task(serve_async(server, "127.0.0.1", port))
    try:
      await asyncio.wait_for(check(f"ws://127.0.0.1:{port}", task), 60)
    finally:
      task.cancel()
      await asyncio.gather(task, return_exceptions=True)
      await service.close()

  asyncio.run(main())


def test_an_episode_of_its_own_runner(policy):
  benchmark = Stub()

  async def check(url, _):
    await asyncio.sleep(0.2)
    async with Connection(url, backoff_base=0.1) as connection:
      task = benchmark.get_tasks()[0]
      result = await SyncEpisodeRunner().run_episode(
        benchmark, task, connection, max_steps=STEPS
      )
      info = connection.server_info
    assert result["metrics"] == {"success": True} and result["steps"] == STEPS
    assert info["action_spec"]["gripper"]["format"] == "binary_close_positive"
    assert set(info["observation_spec"]) == {"agentview", "language"}

  serve(policy, check)
  # A chunk is carried out before the next image is looked at.
  asked = [step - step % served.HORIZON for step in range(STEPS)]
  for step, (action, image) in enumerate(
    zip(benchmark.actions, asked, strict=True)
  ):
    chunk = served.marked(policy, served.image(image))
    expected = CONVENTIONS["libero"].to_benchmark(chunk)
    np.testing.assert_array_equal(action, expected[step % served.HORIZON])
    assert action.shape == (7,) and action.dtype == np.float32


def test_a_history_holds_the_steps_between_two_questions(tokenizer):
  policy = served.MarkedPolicy(tokenizer, history=2)
  benchmark = Stub()

  async def check(url, _):
    await asyncio.sleep(0.2)
    async with Connection(url, backoff_base=0.1) as connection:
      task = benchmark.get_tasks()[0]
      await SyncEpisodeRunner().run_episode(
        benchmark, task, connection, max_steps=STEPS
      )

  serve(policy, check)
  asked = range(0, STEPS, served.HORIZON)
  assert len(policy.seen) == len(asked)
  for step, seen in zip(asked, policy.seen, strict=True):
    expected = [served.image(max(step - 1, 0)), served.image(step)]
    np.testing.assert_array_equal(seen.image[0], expected)


def test_several_episodes_share_calls(tokenizer):
  policy = served.MarkedPolicy(tokenizer)
  count = 4
  benchmarks = [Stub() for _ in range(count)]

  async def episode(url, benchmark):
    async with Connection(url, backoff_base=0.1) as connection:
      task = benchmark.get_tasks()[0]
      await SyncEpisodeRunner().run_episode(
        benchmark, task, connection, max_steps=STEPS
      )

  async def check(url, _):
    await asyncio.sleep(0.2)
    await asyncio.gather(*(episode(url, one) for one in benchmarks))

  serve(policy, check)
  assert max(policy.rows) == 4
  first = np.stack(benchmarks[0].actions)
  assert all((first == np.stack(b.actions)).all() for b in benchmarks)


def test_a_wrong_observation_is_named_and_costs_one_step(policy):
  async def check(url, task):
    await asyncio.sleep(0.2)
    good = Stub().make_obs(0, {"name": "pick apple"})
    async with Connection(url, backoff_base=0.1) as connection:
      with pytest.raises(RuntimeError, match="start of an episode"):
        await connection.act(good)
      await connection.start_episode({"task": {"name": "pick apple"}})
      for wrong, part in (
        ({"images": {"agentview": np.zeros((9, 9, 3), np.uint8)}}, "primary"),
        ({"images": {"wrist": served.image(0)}}, "no image of the camera"),
        ({"images": None}, "without images"),
        ({"task_description": None}, "an instruction"),
      ):
        with pytest.raises(RuntimeError, match=part):
          await connection.act(good | wrong)
      assert (await connection.act(good))["actions"].shape == (7,)
    assert not task.done()

  serve(policy, check)


def test_libero_gets_units_of_its_controller():
  chunk = np.float32([[0, 0.05, -0.025, 0.2, 0.5, -0.25, 0, 1]])
  chunk = np.concatenate([chunk, np.float32([[1, *[0] * 6, 0]])])
  actions = CONVENTIONS["libero"].to_benchmark(chunk)
  expected = [[1, -0.5, 1, 1, -0.5, 0, -1], [0, 0, 0, 0, 0, 0, 1]]
  np.testing.assert_allclose(actions, expected)  # clipped; closes at +1


def test_specs_agree_with_those_of_libero():
  benchmark = LIBEROBenchmark()
  ours = dict(CONVENTIONS["libero"].action)
  assert not specs.check_specs(ours, benchmark.get_action_spec(), {}, {})


def test_what_a_benchmark_does_not_have_is_refused(policy):
  service = served.make_service(policy)
  with pytest.raises(UserError, match="did you mean 'libero'"):
    BenchmarkServer(service, RT2, "librero")
  with pytest.raises(UserError, match="acts with"):
    BenchmarkServer(service, LANGUAGE_TABLE, "libero")
  service.reader.camera_sizes["roof"] = (24, 32)
  with pytest.raises(UserError, match="'roof'"):
    BenchmarkServer(service, RT2, "libero")


def test_a_benchmark_is_asked_for_what_the_policy_reads(policy):
  service = served.make_service(policy)
  server = BenchmarkServer(service, RT2, "libero")
  assert server.get_observation_params() == {}
  state = dataclasses.replace(RT2, name="libero_state")
  service.reader.spec = ObservationSpec(("primary", "wrist"), state=state)
  service.reader.camera_sizes["wrist"] = (24, 32)
  expected = {"send_wrist_image": True, "send_state": True}
  assert server.get_observation_params() == expected
  assert {"wrist", "state"} < set(server.get_observation_spec())
