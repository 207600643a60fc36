"""Sums a trace up: `python launch/profile_summary.py --workdir=runs/x`.

Reads the newest trace of `launch/train.py --profile_steps=100:110`, and prints
the step time, how much of it the host waited for input and the device was idle,
and the operations that cost most; --output=profile.html writes a page with all
of them. TensorBoard shows the same trace in its tab PROFILE where the extra
`[profile]` is installed.
"""

import pathlib

from absl import app, flags

from launch import program
from rt2_jax import storage, trace_summary
from rt2_jax.rollouts import page
from rt2_jax.storage import locate

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a training run.")
_OUTPUT = flags.DEFINE_string("output", None, "A page with all operations.")
_OPS = flags.DEFINE_integer("ops", 10, "Operations to list.", 1)
_TEMPLATE = pathlib.Path(__file__).with_name("profile.html.jinja")


@program.main
def main():
  workdir = locate(_WORKDIR.value, "--workdir")
  trace = trace_summary.newest_trace(workdir)
  print(trace)
  summary = trace_summary.summarize(trace)
  print("\n".join(summary.lines(_OPS.value)))
  if _OUTPUT.value:
    path = locate(_OUTPUT.value, "--output")
    text = page.render(_TEMPLATE, summary=summary, trace=str(trace))
    storage.write(path, text)
    print(f"page: {path}")


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
