"""Shell scripts that a worker of a TPU VM runs.

All of them live in `~/rt2_jax/{name}` of the worker. START needs `code.tar.gz`
there. The training runs on without the connection that started it.
"""

import re

# Images of TPU VMs bring Python 3.10, which is too old.
SETUP = (
  "python3 -m pip install --quiet --user uv && "
  "~/.local/bin/uv venv --quiet --allow-existing --python=3.11 ~/rt2_jax/venv "
  "&& . ~/rt2_jax/venv/bin/activate && "
  "~/.local/bin/uv pip install --quiet -c constraints.txt -e '.[tpu,gcs]'"
)

# The trap lets bash write `ended` after SIGTERM; its child gets the default.
START = """\
set -e
cd ~/rt2_jax/{name}
{unless_stopped}
if [[ -f pid ]]; then kill -KILL -- -$(cat pid) 2>/dev/null || true; fi
if [[ -f log ]]; then cat log >> log.before; fi
rm -rf code ended stopped log
mkdir code && tar -xzf code.tar.gz -C code
cat > train.sh <<'EOF'
cd ~/rt2_jax/{name}/code || exit 1
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
{setup} || exit 1
exec {command}
EOF
setsid nohup bash -c 'trap : TERM; bash train.sh; echo $? > ended' \
  > log 2>&1 < /dev/null &
echo $! > pid
"""
UNLESS_STOPPED = "if [[ -f stopped ]]; then exit 0; fi"
REPORT = """\
mkdir -p ~/rt2_jax/{name} && cd ~/rt2_jax/{name}
if [[ -f pid && ! -f ended ]] && kill -0 $(cat pid) 2> /dev/null
then state=runs
elif [[ -f stopped ]]; then state=stopped
elif [[ ! -f pid ]]; then state=idle
elif [[ -f ended ]]; then state=$(cat ended)
else state=gone; fi
echo "RT2 $(hostname) $state"
"""
# The complete lines of the log from one on.
NEW_LINES = """\
sed -n "{line},$(wc -l < ~/rt2_jax/{name}/log)p" ~/rt2_jax/{name}/log
"""
LAST_LINES = """\
echo "== $(hostname)"
tail -n {count} ~/rt2_jax/{name}/log 2> /dev/null || echo "no log yet"
"""
STOP = """\
mkdir -p ~/rt2_jax/{name} && cd ~/rt2_jax/{name} && touch stopped
if [[ -f pid ]]; then kill -TERM -- -$(cat pid) 2> /dev/null || true; fi
"""
STATE = re.compile(r"^RT2 (\S+) (\S+)$", re.MULTILINE)
