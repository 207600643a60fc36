"""Shared fixtures; eight CPU devices, so that sharding is exercised."""

import os
import pathlib
from collections.abc import Iterator
from importlib.metadata import version

# Before the first import of JAX. Many tests, and the programs that they start,
# compile the same steps: all of them share what one has compiled.
os.environ["XLA_FLAGS"] = " ".join(
  (
    "--xla_force_host_platform_device_count=8",
    # Programs that run for a moment: optimizing them takes longer than it
    # saves. A step of a tiny model compiles in a third of the time.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # Newer releases know no such flag, and end the process.
    *["--xla_cpu_use_fusion_emitters=false"]
    * version("jax").startswith("0.10."),
  )
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
  pathlib.Path(__file__).parent.parent / ".pytest_cache/programs"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import hypothesis
import jax
import pytest

from rt2_jax import storage
from rt2_jax.tokenizer import Tokenizer
from tests import gcs

# Machines differ and may be busy: properties are checked, not speed.
hypothesis.settings.register_profile("rt2", deadline=None)
hypothesis.settings.load_profile("rt2")

ROOT = pathlib.Path(__file__).parent.parent
# For programs with devices of their own.
QUICK_COMPILATION = os.environ["XLA_FLAGS"].partition(" ")[2]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
  return Tokenizer.from_file(ROOT / "data/small_tokenizer.model")


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs() -> Iterator[None]:
  """Frees the programs that a file's tests compiled: gigabytes at the end."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
  """Trains on one device: the step compiles in a tenth of the time."""
  from rt2_jax.train_config import TrainConfig

  make = TrainConfig.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      TrainConfig, "make_mesh", lambda self, all: make(self, all[:1])
    )
    yield


@pytest.fixture(scope="session")
def store() -> Iterator[tuple[storage.Url, gcs.Proxy]]:
  """A bucket on a real Google Cloud Storage server, and the proxy before it.

  For this process and the programs that it starts.
  """
  with gcs.behind_proxy("tests") as found:
    yield found


@pytest.fixture(scope="session")
def bucket(store) -> storage.Url:
  """A bucket on a real Google Cloud Storage server."""
  return store[0]
