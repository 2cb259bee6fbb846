"""Notebooks, where there are any: shown as they are, never run here."""

import pathlib
import shutil

from docs.making import markdown


def pages(folder: pathlib.Path, source: pathlib.Path) -> dict[str, str]:
  """The list of notebooks, which are copied beside it.

  Args:
    folder: With `*.ipynb`; it may not exist.
    source: Where they go.
  """
  found = sorted(folder.glob('*.ipynb'))
  parts = [
    'Each is a file to run from top to bottom, on a CPU, a GPU or a TPU; the '
    'site shows them and runs none.'
  ]
  if not found:
    parts = ['There are none in this version.']
  source.mkdir(parents=True, exist_ok=True)
  for path in found:
    shutil.copy(path, source)
  listed = '\n'.join(path.stem for path in found)
  parts.append(f'```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```')
  return {'notebooks/index': markdown.page('Notebooks', parts)}
