"""Pages: a report as one HTML file that needs nothing else.

Tables, figures, settings, versions and commands; nothing is loaded from
anywhere, so that a page can be sent, archived and opened without a network.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import html
import pathlib
import shlex
from typing import Any

import ml_collections

from ..configuration import config as config_lib
from ..configuration import hints
from ..folders import environments
from ..folders import files
from ..folders import logs
from . import tables as tables_lib
import fmtl_jax

Table = tables_lib.Table
# What figures show, by the name of the file.
_CAPTIONS = {
  'curves': 'The metric against the round.',
  'cases': 'The mean of the metric for every case, against the round.',
  'time': 'The mean of the metric against simulated time.',
  'clients': 'Which clients gain and which lose against the baseline.',
  'gains': 'The gain over local training against the number of examples.',
  'relations': 'How much owners of models are related, those alike together.',
  'communication': 'Bytes of a round by layer type.',
  'bytes': 'The metric against the bytes that a client moves in a round.',
  'confusion': 'What examples of each class are taken for.',
  'comparison': 'The mean over clients and the worst tenth of them.',
  'sweep': 'All points of the grid, and the best ones.',
  'unseen': 'Held-out clients against the number of their examples.',
}
_PROGRAMS = ('main', 'sweep', 'compare', 'unseen')
# Nothing but what stands in the page itself.
_POLICY = (
  "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
  "script-src 'unsafe-inline'"
)
_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.2rem 1rem 3rem;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: #fff; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p.note, p.about { color: var(--soft); font-size: .875rem; margin: .45rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
th { vertical-align: bottom; border-bottom: 2px solid var(--ink); }
th:first-child, td:first-child, .plain th, .plain td { text-align: left; }
.results td:first-child, .results th:first-child { position: sticky; left: 0;
  background: #fff; white-space: normal; min-width: 8.5rem; }
.plain td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.plain td:first-child { min-width: 9rem; }
.published td, .published th { color: var(--soft); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 1.4rem 0; }
figure img { width: 100%; min-width: 40rem; max-width: 56rem; height: auto; }
figcaption { color: var(--soft); font-size: .875rem; }
details { border-top: 1px solid var(--line); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: #f4f6f8; padding: .7rem .8rem;
  font-size: .8125rem; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media print { th button::after { display: none; } }
"""
_SCRIPT = """
const units = {B: 1, KiB: 1024, MiB: 1048576, GiB: 1073741824, TiB: 2 ** 40,
  ms: 0.001, s: 1};
function valueOf(cell) {
  const text = cell.textContent.trim();
  const plain = text.replace(/,/g, '').replace('\\u2212', '-');
  const found = plain.match(/^([-+]?[0-9.]+)(?: ([A-Za-z]+))?/);
  if (!found) return text;
  return parseFloat(found[1]) * (units[found[2]] || 1);
}
function order(a, b) {
  if (typeof a !== typeof b) return typeof a === 'number' ? -1 : 1;
  return typeof a === 'number' ? a - b : a.localeCompare(b);
}
for (const button of document.querySelectorAll('th button')) {
  button.addEventListener('click', () => {
    const head = button.parentElement, table = head.closest('table');
    const column = head.cellIndex;
    const up = head.getAttribute('aria-sort') !== 'ascending';
    for (const other of table.querySelectorAll('th')) {
      other.removeAttribute('aria-sort');
    }
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const body = table.tBodies[0], rows = [...body.rows];
    rows.sort((a, b) => {
      const found = order(valueOf(a.cells[column]), valueOf(b.cells[column]));
      return up ? found : -found;
    });
    body.append(...rows);
  });
}
"""


def write(
  workdir: pathlib.Path,
  name: str,
  config: ml_collections.ConfigDict,
  tables: Sequence[Table],
  made_with: Mapping[str, Any],
  figures: Sequence[str] = (),
  more: Sequence[Table] = (),
) -> None:
  """Writes NAME.html; the file is the old or the new one.

  Args:
    workdir: Of the run; its figures are drawn.
    name: Of the report, such as `results`.
    config: Of the run.
    tables: The results first.
    made_with: Of `environments.summary`.
    figures: Names of figures, without suffix, in their order; those that are
      not there are left out. By default that of the report.
    more: Tables that are folded up.
  """
  flat = config_lib.flatten(config)
  changed = config_lib.changed(flat)
  title = tables[0].title
  parts = [
    f'<h1>{_text(title)}</h1>',
    f'<p class="about">{_text(_about(config, made_with))}</p>',
    *(_results(table, number) for number, table in enumerate(tables)),
    *_figures(workdir, figures or (name,)),
    '<h2>How it was made</h2>',
    *(f'<pre>{_text(line)}</pre>' for line in commands(workdir)),
    _settings('Settings that are not the defaults', changed, is_open=True),
    _settings('All settings', flat),
    *(_folded(table.title, _table(table)) for table in more),
    *_data(workdir),
    *_environments(made_with),
  ]
  page = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    f'<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
    + '\n'.join(parts)
    + f'\n<script>{_SCRIPT}</script>\n</body>\n</html>\n'
  )
  files.write_text(workdir / f'{name}.html', page)


def _text(value: Any) -> str:
  """Text of whatever origin, as HTML shows it."""
  return html.escape(str(value), quote=True)


def _about(config, made_with) -> str:
  """One line: what was run, where, with which version."""
  run, made = config.run, made_with['environment']
  last = run.first_seed + run.seeds - 1
  seeds = (
    f'seeds {run.first_seed} to {last}' if run.seeds > 1 else f'seed {last}'
  )
  version = made.get('fmtl_jax') or fmtl_jax.__version__
  return (
    f'{config.name}: {run.rounds} rounds, {seeds}, data {config.data.name}; '
    f'fmtl_jax {version}'
    + (f' on {made["device_kind"]}.' if made.get('device_kind') else '.')
  )


def _results(table: Table, number: int) -> str:
  """A table with its title and notes; the first one has the page's title."""
  notes = ''.join(f'<p class="note">{_text(note)}</p>' for note in table.notes)
  title = f'<h2>{_text(table.title)}</h2>' if number else ''
  return f'<section>{title}{_table(table)}{notes}</section>'


def _table(table: Table) -> str:
  """A table whose columns can be sorted by."""
  head = ''.join(
    f'<th scope="col"><button type="button">{_text(cell)}</button></th>'
    for cell in table.header
  )
  body = ''.join(
    _row(
      f'<strong>{_text(cell)}</strong>'
      if (number, column) in table.bold
      else _text(cell)
      for column, cell in enumerate(row)
    )
    for number, row in enumerate(table.rows)
  )
  published = ''
  if table.published:
    rows = ''.join(_row(map(_text, row)) for row in table.published)
    published = (
      f'<tbody class="published"><tr><th colspan="{len(table.header)}">'
      f'{_text(tables_lib.PUBLISHED)}</th></tr>{rows}</tbody>'
    )
  return (
    f'<div class="wide"><table class="results"><thead><tr>{head}</tr></thead>'
    f'<tbody>{body}</tbody>{published}</table></div>'
  )


def _row(cells: Iterable[str]) -> str:
  return f'<tr>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _plain(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table of texts."""
  head = ''.join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
  body = ''.join(_row(map(_text, row)) for row in rows)
  return (
    f'<div class="wide"><table class="plain"><thead><tr>{head}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def _folded(title: str, content: str, is_open: bool = False) -> str:
  """Content that is seen when one asks for it."""
  return (
    f'<details{" open" * is_open}><summary>{_text(title)}</summary>{content}'
    '</details>'
  )


def _figures(workdir: pathlib.Path, names: Sequence[str]) -> list[str]:
  """The figures that are there, their pixels in the page."""
  found = []
  for name in names:
    path = workdir / f'{name}.png'
    if path.exists():
      pixels = base64.b64encode(path.read_bytes()).decode()
      caption = _text(_CAPTIONS.get(name, name))
      found.append(
        '<figure><div class="wide"><img alt="'
        f'{caption}" src="data:image/png;base64,{pixels}"></div>'
        f'<figcaption>{caption}</figcaption></figure>'
      )
  return ['<h2>Figures</h2>', *found] if found else []


def _settings(
  title: str, fields: Mapping[str, Any], is_open: bool = False
) -> str:
  rows = [(field, config_lib.shown(value)) for field, value in fields.items()]
  return _folded(title, _plain(('field', 'value'), rows), is_open)


def commands(workdir: pathlib.Path) -> list[str]:
  """The commands that trained in a folder, as one types them."""
  found = []
  for words in logs.commands(workdir):
    program = pathlib.Path(words[0]).stem
    if program in _PROGRAMS:  # A notebook or a test is no command.
      module = hints.module(program)
      found.append(' '.join(map(_quoted, ['python', '-m', module, *words[1:]])))
  return [*dict.fromkeys(found)]


def _quoted(word: str) -> str:
  """A word as a shell reads it; tuples of texts stay readable."""
  if "'" in word and not set(word) & set('"$`\\!'):
    return f'"{word}"'
  return shlex.quote(word)


def _data(workdir: pathlib.Path) -> list[str]:
  """How the data were partitioned, where a run has written it."""
  path = workdir / 'partition.txt'
  if not path.exists():
    return []
  text = path.read_text(encoding=files.ENCODING)
  return [_folded('Clients and their data', f'<pre>{_text(text)}</pre>')]


def _environments(made_with: Mapping[str, Any]) -> list[str]:
  """Versions and devices of every process that trained."""
  found = []
  for entry in made_with[environments.KEY]:
    rounds = '; '.join(
      f'{name}: rounds '
      + ', '.join(f'{first} to {last}' for first, last in spans)
      for name, spans in entry['cases'].items()
    )
    rows = [*(entry['environment'] or {'not known': ''}).items()]
    if entry.get('until'):
      rows.append(('until', entry['until']))
    found.append(
      _folded(
        'Versions and devices',
        f'<p class="note">{_text(rounds)}</p>'
        + _plain(('what', 'value'), rows),
      )
    )
  return found
