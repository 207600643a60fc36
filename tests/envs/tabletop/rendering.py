"""Runs functions where drawing works: in a process without TensorFlow.

Test modules are imported together, and some import TensorFlow; it and the
drawing library cannot share a process.
"""

import concurrent.futures
import functools
import multiprocessing

from rt2_jax.envs.tabletop import pictures
from rt2_jax.envs.tabletop.environment import TabletopConfig, TabletopEnv
from tests.conftest import ROOT

PICTURES = ROOT / "data/pictures.zip"


@functools.cache
def process() -> concurrent.futures.Executor:
  """One for all tests of a worker."""
  return concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context("spawn")
  )


def rendered(test):
  """Makes a test run there; its asserts and errors arrive here."""

  @functools.wraps(test)
  def run(*args, **kwargs):
    task = process().submit(call, test.__module__, test.__name__, args, kwargs)
    return task.result(timeout=300)

  return run


def call(module, name, args, kwargs):
  """The test itself, under the name that the decorated one has."""
  test = getattr(__import__(module, fromlist=[name]), name)
  return test.__wrapped__(*args, **kwargs)


@functools.cache
def environment(config: TabletopConfig | None = None) -> TabletopEnv:
  """The same one for all tests with the same configuration."""
  config = config or TabletopConfig(image_size=64)
  return TabletopEnv(pictures.load(PICTURES), config)
