"""Calls in threads, a few ahead of the use of their results."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
  function: Callable[[Item], Result],
  items: Iterable[Item],
  num_threads: int,
  ahead: int = 0,
) -> Iterator[concurrent.futures.Future[Result]]:
  """Starts `function` of each item ahead of its use; yields them in order.

  Args:
    function: may be called from any thread.
    items: its arguments.
    num_threads: calls at the same time.
    ahead: finished calls that wait for their use, beyond those.
  """
  rest = iter(items)
  pool = concurrent.futures.ThreadPoolExecutor(num_threads)
  started = collections.deque(
    pool.submit(function, item)
    for item in itertools.islice(rest, ahead + num_threads)
  )
  try:
    while started:
      yield started.popleft()
      started += (
        pool.submit(function, item) for item in itertools.islice(rest, 1)
      )
  finally:
    for call in started:
      call.cancel()
    pool.shutdown()
