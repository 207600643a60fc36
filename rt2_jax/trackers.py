"""Trackers of experiments beside TensorBoard: W&B and Trackio.

Trackio speaks W&B's interface, so one class drives both. Where they send and
keep what they get is told by their own environment variables, such as
WANDB_MODE=offline and TRACKIO_DIR.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rt2_jax.errors import UserError, first_line

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
  """Fields of a config's `tracking`; each tracker is an extra of setup.py.

  Attributes:
    wandb: also logs to Weights & Biases.
    trackio: also logs to Trackio.
    project: their name for what runs are compared in.
  """

  wandb: bool = False
  trackio: bool = False
  project: str = "rt2"

  @property
  def trackers(self) -> tuple[str, ...]:
    """Lists the chosen trackers, which are also their packages' names."""
    chosen = {"wandb": self.wandb, "trackio": self.trackio}
    return tuple(name for name, is_chosen in chosen.items() if is_chosen)


class Tracker:
  """Sends a run's figures to one tracker.

  A tracker that fails while a run goes on is left: no figure is worth a run.
  """

  def __init__(
    self, name: str, project: str, run: str, fields: Mapping[str, Any]
  ):
    """Starts a run, or goes on with the one of this name.

    Args:
      name: of the tracker, also of its package.
      project: holds the run.
      run: the name, which no other run of the project may have.
      fields: of the run's config.

    Raises:
      UserError: the tracker refuses.
    """
    self._name = name
    module = importlib.import_module(name)
    known = {"project": project, "name": run, "config": dict(fields)}
    if name == "wandb":  # continues a run by its id
      known |= {"id": run, "settings": module.Settings(silent=True)}
    try:
      # Several lines about itself.
      with contextlib.redirect_stdout(io.StringIO()):
        self._run = module.init(resume="allow", **known)
    except Exception as error:
      raise UserError(
        f"got config.tracking.{name} = True, expected that {name} starts: "
        f"{type(error).__name__}: {first_line(error)}; log in, let it work "
        f"offline, or set config.tracking.{name} to False"
      ) from error
    self._picture = module.Image
    offline = getattr(self._run, "offline", False)  # W&B warns about its URL
    url = None if offline else getattr(self._run, "url", None)
    where = url or "kept on this machine"
    _LOG.info("%s: project %s, run %s, %s", name, project, run, where)

  def scalars(self, step: int, values: Mapping[str, float]):
    """Sends numbers by their names, such as "train/loss"."""
    self._tell(lambda run: run.log(dict(values), step=step))

  def pictures(self, step: int, pictures: Mapping[str, np.ndarray]):
    """Sends pictures uint8[H, W, 3] by their names."""
    self._tell(
      lambda run: run.log(
        {name: self._picture(pixels) for name, pixels in pictures.items()},
        step=step,
      )
    )

  def flush(self):
    """Does nothing: trackers send by themselves."""

  def close(self):
    """Waits until all is sent."""
    self._tell(lambda run: run.finish())

  def _tell(self, action: Callable[[Any], None]):
    if self._run is None:
      return
    try:
      with contextlib.redirect_stdout(io.StringIO()):
        action(self._run)
    except Exception as error:
      self._run = None
      _LOG.warning(
        "%s fails and gets nothing more of this run: %s: %s",
        self._name,
        type(error).__name__,
        first_line(error),
      )
