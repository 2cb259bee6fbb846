"""What the benchmarks print and write."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any


def write(figures: Mapping[str, Any], path: str) -> None:
  """Writes figures as JSON, unless the path is ''."""
  if path:
    text = json.dumps(figures, indent=1)
    pathlib.Path(path).write_text(text + '\n', encoding='utf-8')


def show(figures: Mapping[str, Any], path: str) -> None:
  """Prints figures as JSON, and writes them unless the path is ''."""
  print(json.dumps(figures, indent=1))
  write(figures, path)
