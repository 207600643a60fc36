"""Sums a trace up: `python launch/profile_summary.py --workdir=runs/x`.

Reads the newest trace of `launch/train.py --profile_steps=100:110`, and prints
the step time, how much of it the host waited for input and the device was idle,
and the operations that cost most. TensorBoard shows the same trace in its tab
PROFILE where the extra `[profile]` is installed.
"""

from absl import app, flags

from launch import program
from rt2_jax import trace_summary
from rt2_jax.storage import locate

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a training run.")
_OPS = flags.DEFINE_integer("ops", 10, "Operations to list.", 1)


@program.main
def main():
  workdir = locate(_WORKDIR.value, "--workdir")
  trace = trace_summary.newest_trace(workdir)
  print(trace)
  print("\n".join(trace_summary.summarize(trace).lines(_OPS.value)))


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
