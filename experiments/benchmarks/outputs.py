"""What the benchmarks print and write."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any


def show(figures: Mapping[str, Any], path: str) -> None:
  """Prints figures as JSON, and writes them unless the path is ''."""
  text = json.dumps(figures, indent=1)
  print(text)
  if path:
    pathlib.Path(path).write_text(text + '\n', encoding='utf-8')
