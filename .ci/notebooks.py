"""Runs the notebooks from top to bottom: python .ci/notebooks.py [NAME ...]

A notebook is `notebooks/NAME.py` with cells; the `.ipynb` beside it is made of
it, without outputs, by --write. It fails where the two differ, or a cell does.
By default all of them run in their smoke setting, two at a time; --full runs
the whole of it, one by one.
Needs the extra `notebooks`.
"""

import argparse
from concurrent import futures
import os
import pathlib
import sys
import tempfile
import time

import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'notebooks'
TIMEOUT = 900  # Seconds for a cell.
AT_ONCE = 2  # Much of a short run is one thread that traces.


def paired(source: pathlib.Path) -> nbformat.NotebookNode:
  """The notebook of a file with cells, always the same one."""
  notebook = jupytext.read(source)
  cells = []
  for number, cell in enumerate(notebook.cells):
    new = {'code': nbformat.v4.new_code_cell}.get(
      cell.cell_type, nbformat.v4.new_markdown_cell
    )
    cells.append(new(cell.source, id=f'cell-{number}'))
  kernel = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
  metadata = {
    'jupytext': {'formats': 'ipynb,py:percent'},
    'kernelspec': kernel,
    'language_info': {'name': 'python'},
  }
  return nbformat.v4.new_notebook(
    cells=cells, metadata=metadata, nbformat_minor=5
  )


def text_of(notebook: nbformat.NotebookNode) -> str:
  """A notebook as it stands in its file."""
  return nbformat.writes(notebook, version=4) + '\n'


def execute(notebook: nbformat.NotebookNode) -> str:
  """Runs all cells in a new folder; returns what a cell raised, or ''."""
  with tempfile.TemporaryDirectory() as folder:
    client = nbclient.NotebookClient(
      notebook, timeout=TIMEOUT, resources={'metadata': {'path': folder}}
    )
    try:
      client.execute()
    except nbclient.exceptions.CellExecutionError as error:
      return str(error)
  return ''


def check(source: pathlib.Path, write: bool) -> bool:
  """Compares and runs a notebook; says whether all is well."""
  notebook = paired(source)
  other, start = source.with_suffix('.ipynb'), time.perf_counter()
  if write:
    other.write_text(text_of(notebook), encoding='utf-8')
    return True
  wrong = ''
  if not other.exists() or other.read_text('utf-8') != text_of(notebook):
    wrong = f'{other.name} is not {source.name}: run .ci/notebooks.py --write.'
  wrong = wrong or execute(notebook)
  outcome = 'FAIL' if wrong else 'PASS'
  seconds = time.perf_counter() - start
  print(f'notebooks  {outcome}  {source.stem}: {seconds:.0f} s', flush=True)
  if wrong:
    print(wrong, file=sys.stderr, flush=True)
  return not wrong


def main() -> int:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='*', help='By default all.')
  parser.add_argument('--full', action='store_true', help='Not the smoke test.')
  parser.add_argument('--write', action='store_true', help='Make the .ipynb.')
  given = parser.parse_args()
  os.environ['FMTL_JAX_SMOKE'] = '0' if given.full else '1'
  sources = [FOLDER / f'{name}.py' for name in given.names]
  sources = sources or sorted(FOLDER.glob('*.py'))
  with futures.ThreadPoolExecutor(1 if given.full else AT_ONCE) as pool:
    outcomes = list(
      pool.map(lambda source: check(source, given.write), sources)
    )
  return 0 if all(outcomes) else 1


if __name__ == '__main__':
  sys.exit(main())
