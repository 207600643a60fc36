"""Shared fixtures; eight CPU devices, so that sharding is exercised."""

import os
import pathlib

# Before the first import of JAX.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis
import pytest

from rt2_jax.tokenizer import Tokenizer

# Machines differ and may be busy: properties are checked, not speed.
hypothesis.settings.register_profile("rt2", deadline=None)
hypothesis.settings.load_profile("rt2")

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
  return Tokenizer.from_file(ROOT / "data/small_tokenizer.model")
