# Each target sets up .venv by itself when it is missing or out of date.

PYTHON ?= python3
RUN := .venv/bin/python
QUICKSTART ?= runs/quickstart

# The simulated tabletop is drawn without a screen by one of these libraries.
DRAWING := ldconfig -p | grep -qE 'lib(EGL|OSMesa)\.so'
INSTALL_DRAWING := { apt-get -qq update && apt-get -qq install -y \
  libegl1 libegl-mesa0 libgl1-mesa-dri; }

.PHONY: quickstart test lint format bench clean

quickstart: .venv/installed
	$(RUN) -m data.make_reach_episodes --output_dir=$(QUICKSTART)/data \
	  --train_episodes=24 --val_episodes=6
	$(RUN) launch/train.py --config=configs/quickstart.py \
	  --config.sources.reach.path=$(QUICKSTART)/data/fractal20220817_data/0.1.0 \
	  --workdir=$(QUICKSTART)/run
	$(RUN) launch/evaluate.py --workdir=$(QUICKSTART)/run

test: .venv/installed-extras
	$(RUN) -m pytest -n 2 --dist loadfile

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: .venv/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: .venv/installed-extras
	$(RUN) -m data.make_reach_episodes --output_dir=runs/bench \
	  --train_episodes=200 --val_episodes=1 --sensor_noise=4 --rate_hz=12
	$(RUN) launch/benchmark.py \
	  --data=runs/bench/fractal20220817_data/0.1.0
	$(RUN) launch/validation.py

# PyTorch, to compare with; the TPU's compiler; the simulator. Not for the
# quick start, since JAX warns of a TPU that is not there once libtpu is.
.venv/installed-extras: .venv/installed
	.venv/bin/pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[plan,sim,torch]'
	$(DRAWING) || $(INSTALL_DRAWING) || echo "make: the tabletop cannot \
	  be drawn; as root, run: $(INSTALL_DRAWING)"
	touch $@

clean:
	rm -rf .venv runs build *.egg-info

# constraints.txt holds the exact versions that CI tests; setup.py holds ranges.
.venv/installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or \
	  sys.exit(f"got Python {v[0]}.{v[1]}, expected 3.11 or newer: \
	  make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[test]'
	touch $@
