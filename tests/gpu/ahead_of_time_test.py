"""An H100 that is not here; gpu_card_test compares what was planned for it."""

import pytest
from jax.experimental import topologies

from rt2_jax.errors import UserError
from rt2_jax.gpu import ahead_of_time


def test_a_jax_without_cuda_is_named(monkeypatch):
  def without_cuda(*_, **__):
    raise NotImplementedError("topology not implemented for cuda")

  monkeypatch.setattr(topologies, "get_topology_desc", without_cuda)
  with pytest.raises(UserError, match=r"jax\[cuda12\]"):
    ahead_of_time.h100()
