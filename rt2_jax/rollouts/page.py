"""Writes HTML pages of one look, which need no network and no other file."""

from __future__ import annotations

import pathlib
from typing import Any

import jinja2

_HERE = pathlib.Path(__file__).parent


def render(template: pathlib.Path, **values: Any) -> str:
  """Fills in a template, which may include page_style.css.jinja.

  Texts among the values are escaped, and a value that is missing is an error.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader([template.parent, _HERE]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
  )
  return environment.get_template(template.name).render(**values)
