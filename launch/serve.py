"""Serves a policy to robots, over websockets and HTTP.

  python launch/serve.py --checkpoint=runs/kitchen --camera_sizes=256x320
  python launch/serve.py --checkpoint=exported --batch_sizes=1,4,16 \\
    --camera_sizes=primary=480x640,wrist=240x320
  python launch/serve.py --checkpoint=runs/libero --camera_sizes=256x256 \\
    --vla_eval=libero --vla_eval_port=8001

A checkpoint is a run's workdir or a folder of `launch/convert.py to_hf`, which
acts in PyTorch. The policy is compiled for the stated sizes before the service
says "ready"; other images are refused. `docs/serving.md` is the guide.

Other machines are let in by --host, and only with a token, which the variable
RT2_TOKEN holds here and where robots ask.
SIGTERM and Ctrl-C finish what robots have asked.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence

from absl import app, flags

from launch import program, served_policy
from rt2_jax import shipped
from rt2_jax.errors import UserError
from rt2_jax.robot_policy import RobotPolicy

with program.extra("serve"):
  from rt2_jax.serving import server
  from rt2_jax.serving.batcher import Batcher
  from rt2_jax.serving.description import describe, read_token
  from rt2_jax.serving.reading import Reader, Size
  from rt2_jax.serving.service import Service

_LOOPBACK = "127.0.0.1"

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run's workdir, or an exported folder."
)
_SOURCE = flags.DEFINE_string(
  "source", None, "Robot source whose actions to use, where there are several."
)
_STEP = flags.DEFINE_integer("step", None, "Of a run; default: the newest.", 0)
_INT8 = flags.DEFINE_boolean(
  "int8", False, "Rounds a run's matrices to 8 bits, see docs/serving.md."
)
_CAMERA_SIZES = flags.DEFINE_list(
  "camera_sizes",
  None,
  "Height x width of all cameras, or camera=HEIGHTxWIDTH of each.",
)
_BATCH_SIZES = flags.DEFINE_list(
  "batch_sizes", ["1", "8"], "Robots of a device call, to compile for."
)
_DEADLINE = flags.DEFINE_float(
  "deadline_ms", 5.0, "Longest wait for other robots' requests.", 0.0
)
_QUEUE = flags.DEFINE_integer(
  "queue_length", 64, "Requests that may wait; others are refused.", 1
)
_HOST = flags.DEFINE_string("host", _LOOPBACK, "Address to serve on.")
_PORT = flags.DEFINE_integer("port", 8000, "0 takes a free one.", 0, 65535)
_CONTROL_HZ = flags.DEFINE_float(
  "control_hz", None, "Robot's steps per second; default: the dataset's.", 0.0
)
_VLA_EVAL = flags.DEFINE_string(
  "vla_eval", None, "Benchmarks' convention to serve vla-eval with: libero."
)
_VLA_EVAL_PORT = flags.DEFINE_integer(
  "vla_eval_port", 8001, "Of its protocol; the loopback's only.", 1, 65535
)


@program.main
def main():
  logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
  token = read_token()
  server.check_exposure(_HOST.value, token)
  if _VLA_EVAL.value:
    server.bind(_LOOPBACK, _VLA_EVAL_PORT.value).close()  # it is free
  with server.bind(_HOST.value, _PORT.value) as listener:
    opened = served_policy.open_policy(
      shipped.find(_CHECKPOINT.value), _SOURCE.value, _STEP.value, _INT8.value
    )
    asyncio.run(serve(make_service(opened), opened.policy, listener, token))


def make_service(opened: served_policy.Opened) -> Service:
  """Makes the service that the flags describe.

  Raises:
    UserError: flags that do not fit the policy.
  """
  policy, spec = opened.policy, opened.policy.observation
  sizes = camera_sizes(_CAMERA_SIZES.value, spec.present)
  reader = Reader(spec, sizes, policy.prompt)
  metadata = describe(
    policy.action_tokenizer,
    spec,
    sizes,
    _CONTROL_HZ.value or opened.control_hz,
    opened.identity,
  )
  batcher = Batcher(
    policy.decide,
    spec.history,
    batch_sizes(_BATCH_SIZES.value),
    _DEADLINE.value / 1000,
    _QUEUE.value,
  )
  return Service(metadata, reader, batcher)


async def serve(
  service: Service,
  policy: RobotPolicy,
  listener: socket.socket,
  token: str,
) -> None:
  """Serves all protocols until the process is told to end."""
  place = server.address(listener)
  benchmarks: list[asyncio.Task] = []
  if _VLA_EVAL.value:
    from rt2_jax.serving import vla_eval

    space, name = policy.action_space, _VLA_EVAL.value
    harness = vla_eval.BenchmarkServer(service, space, name)

  def announce():
    if _VLA_EVAL.value:
      listening = vla_eval.listen(harness, _LOOPBACK, _VLA_EVAL_PORT.value)
      benchmarks.append(asyncio.get_running_loop().create_task(listening))
      print(f"vla-eval: ws://{_LOOPBACK}:{_VLA_EVAL_PORT.value}")
    print(f"ready: ws://{place}", flush=True)

  print(f"compiling for http://{place}", flush=True)
  await server.Server(service, listener, token).run_service(announce)
  for task in benchmarks:
    task.cancel()
  await asyncio.gather(*benchmarks, return_exceptions=True)
  print("stopped", flush=True)


def batch_sizes(values: Sequence[str]) -> list[int]:
  """Reads numbers of robots, in order.

  Raises:
    UserError: none, or not whole numbers from 1 on.
  """
  if not values or not all(v.isdecimal() and int(v) > 0 for v in values):
    raise UserError(
      f"got --batch_sizes={','.join(values)}, expected numbers of robots such "
      "as 1,8"
    )
  return sorted({int(value) for value in values})


def camera_sizes(
  values: Sequence[str], cameras: Sequence[str]
) -> dict[str, Size]:
  """Reads the sizes of all cameras.

  Raises:
    UserError: a size that is none.
  """
  sizes = {}
  for value in values:
    camera, _, size = value.rpartition("=")
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
      raise UserError(
        f"got {value!r} of --camera_sizes, expected HEIGHTxWIDTH or "
        "camera=HEIGHTxWIDTH, such as 480x640"
      )
    for name in [camera] if camera else cameras:
      sizes[name] = int(height), int(width)
  return sizes


if __name__ == "__main__":
  flags.mark_flags_as_required(["checkpoint", "camera_sizes"])
  app.run(main)
