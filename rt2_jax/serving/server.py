"""The service on a port: routes, who may ask, start and end.

One port speaks openpi's websocket protocol at every path, and HTTP. By default
it is the loopback's; a port that others can reach needs a token.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from rt2_jax.errors import UserError
from rt2_jax.serving import http_json, openpi
from rt2_jax.serving.description import TOKEN_VARIABLE
from rt2_jax.serving.service import Service

_OPEN = ("/healthz", "/readyz")  # probes have no token
_SCHEMES = ("Api-Key ", "Bearer ")
_MAX_CLIENTS = 512
_END_S = 5  # until connections that do not close are cut


def check_exposure(host: str, token: str) -> None:
  """Checks that only those who may ask can.

  Raises:
    UserError: an address that others can reach, without a token.
  """
  if not token and not _is_loopback(host):
    raise UserError(
      f"got the address {host!r}, which other machines can reach, without a "
      f"token; set {TOKEN_VARIABLE}, or serve on 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def make_app(service: Service, token: str = "") -> ASGIApp:
  """Makes the ASGI application.

  Args:
    service: which is started and closed elsewhere.
    token: that clients must show; "" asks for none.
  """

  async def speak_openpi(websocket: WebSocket):
    if not service.ready:
      refusal = PlainTextResponse("not ready\n", 503)
      await websocket.send_denial_response(refusal)
      return
    await openpi.serve(websocket, service)

  app = Starlette(
    routes=[
      Route("/act", http_json.act, methods=["POST"]),
      Route("/healthz", http_json.healthz),
      Route("/readyz", http_json.readyz),
      Route("/metadata", http_json.metadata),
      Route("/metrics", http_json.numbers),
      WebSocketRoute("/{path:path}", speak_openpi),
    ]
  )
  app.state.service = service
  return _Guard(app, token)


class _Guard:
  """Lets nobody in without the token, and no page of a browser at all.

  A browser lets any page talk to the loopback, but it names the page's origin.
  """

  def __init__(self, app: ASGIApp, token: str):
    self._app = app
    self._token = token.encode()

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    refusal = self._refusal(HTTPConnection(scope))
    if refusal is None:
      await self._app(scope, receive, send)
    elif scope["type"] == "websocket":
      websocket = WebSocket(scope, receive, send)
      await websocket.send_denial_response(refusal)
    else:
      await refusal(scope, receive, send)

  def _refusal(self, asking: HTTPConnection) -> PlainTextResponse | None:
    if "origin" in asking.headers:
      return PlainTextResponse("browsers may not ask\n", 403)
    if not self._token or asking.url.path in _OPEN:
      return None
    shown = asking.headers.get("authorization", "")
    for scheme in _SCHEMES:
      given = shown.removeprefix(scheme).encode()
      if shown.startswith(scheme) and hmac.compare_digest(given, self._token):
        return None
    return PlainTextResponse(
      "expected the header 'Authorization: Api-Key TOKEN'\n", 401
    )


class Server(uvicorn.Server):
  """The port, from the policy's compilation to the last answer."""

  def __init__(self, service: Service, listener: socket.socket, token: str):
    """Opens nothing yet.

    Args:
      service: is started once the policy is compiled, and closed at the end.
      listener: the opened port, see `bind`.
      token: that clients must show; "" asks for none.
    """
    super().__init__(
      uvicorn.Config(
        make_app(service, token),
        ws="websockets-sansio",
        ws_max_size=service.reader.max_bytes,
        ws_per_message_deflate=False,
        limit_concurrency=_MAX_CLIENTS,
        timeout_graceful_shutdown=_END_S,
        access_log=False,
        log_level="warning",
        lifespan="off",
      )
    )
    self._service = service
    self._listener = listener
    self._closing: asyncio.Task | None = None

  async def run_service(self, announce: Callable[[], None]) -> None:
    """Serves until SIGTERM, Ctrl-C or `stop`.

    While the policy is compiled, in a thread, /healthz is answered.

    Args:
      announce: says that requests are taken.
    """
    serving = asyncio.create_task(self.serve([self._listener]))
    await asyncio.to_thread(self._service.prepare)
    if self._closing is None:
      self._service.start()
      announce()
    await serving

  def handle_exit(self, sig: int, frame) -> None:
    """Begins the end at a signal; a second one does not wait for anything."""
    if self._closing is not None:
      self.should_exit = self.force_exit = True
    self.stop()

  def stop(self) -> None:
    """Begins the end: finishes what robots have asked, and takes no more."""
    if self._closing is None:
      self._closing = asyncio.get_running_loop().create_task(self._end())

  async def _end(self) -> None:
    await self._service.close()
    self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
  """Opens the port; 0 takes any that is free.

  Raises:
    UserError: it cannot be opened.
  """
  try:
    return socket.create_server(
      (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    )
  except OSError as error:
    raise UserError(
      f"got {host}:{port}, which cannot be opened ({error.strerror}); choose "
      "another address or port"
    ) from error


def address(listener: socket.socket) -> str:
  """Writes a port's host and number as they stand in an address."""
  host, port = listener.getsockname()[:2]
  return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
