"""Tables of strings, rendered as Markdown, LaTeX or text."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import math
import pathlib
import textwrap

from ..folders import files
from . import texts

Row = tuple[str, ...]
PUBLISHED = 'Published figures'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table of strings.

  Attributes:
    title: One line.
    header: The names of the columns, the first that of the rows' labels.
    rows: As long as the header each.
    bold: `(row, column)` of the cells of `rows` that stand out.
    published: Rows from elsewhere, below a rule.
    notes: Sentences below the table.
  """

  title: str
  header: Row
  rows: tuple[Row, ...]
  bold: Collection[tuple[int, int]] = ()
  published: tuple[Row, ...] = ()
  notes: tuple[str, ...] = ()


def best_rows(
  values: Mapping[int, float | None], decimals: int, lower_is_better: bool
) -> set[int]:
  """The rows with the best value of a column, as shown; none of a single one.

  Args:
    values: By row, of those that compete; undefined ones never win.
    decimals: How many are shown.
    lower_is_better: Whether the smallest value is the best one.
  """
  shown = {
    row: round(value, decimals)
    for row, value in values.items()
    if value is not None and math.isfinite(value)
  }
  if len(shown) < 2:
    return set()
  best = (min if lower_is_better else max)(shown.values())
  return {row for row, value in shown.items() if value == best}


def with_published(
  table: Table, published: Mapping[str, Mapping[str, str]], source: str
) -> Table:
  """Adds published figures below a rule.

  Args:
    table: Whose columns the figures are for.
    published: The figures as text, by row label and column.
    source: Where they come from, in words.

  Raises:
    ValueError: If a column is not one of the table's.
  """
  columns = table.header[1:]
  for label, cells in published.items():
    for column in cells:
      if column not in columns:
        raise ValueError(
          f'Expected the published figures of {label!r} to name columns of '
          f'the table ({", ".join(columns)}), got {column!r}.'
        )
  rows = tuple(
    (label, *(cells.get(column, texts.MISSING) for column in columns))
    for label, cells in published.items()
  )
  return dataclasses.replace(
    table,
    published=table.published + rows,
    notes=(*table.notes, f'{PUBLISHED}: {source}'),
  )


def to_markdown(table: Table) -> str:
  """Renders a table for Markdown."""
  escape = lambda text: text.translate(_MARKDOWN)
  line = lambda cells: f'| {" | ".join(cells)} |'
  count = len(table.header)
  lines = [
    f'**{escape(table.title)}**',
    '',
    line(map(escape, table.header)),
    line([':--', *['--:'] * (count - 1)]),
  ]
  for number, row in enumerate(table.rows):
    cells = [
      f'**{escape(cell)}**' if (number, column) in table.bold else escape(cell)
      for column, cell in enumerate(row)
    ]
    lines.append(line(cells))
  if table.published:
    lines.append(line([f'*{PUBLISHED}*', *[''] * (count - 1)]))
    lines += [line(map(escape, row)) for row in table.published]
  for note in table.notes:
    lines += ['', escape(note)]
  return '\n'.join(lines) + '\n'


_MARKDOWN = str.maketrans({'|': r'\|', '*': r'\*', '\\': r'\\'})


def to_latex(table: Table) -> str:
  """Renders a table for LaTeX; it needs the package booktabs."""
  escape = lambda text: text.translate(_LATEX)
  line = lambda cells: f'    {" & ".join(cells)} \\\\'
  count = len(table.header)
  lines = [
    r'\begin{table}',
    r'  \centering',
    rf'  \caption{{{escape(table.title)}}}',
    rf'  \begin{{tabular}}{{l{"r" * (count - 1)}}}',
    r'    \toprule',
    line(map(escape, table.header)),
    r'    \midrule',
  ]
  for number, row in enumerate(table.rows):
    cells = [
      rf'\textbf{{{escape(cell)}}}'
      if (number, column) in table.bold
      else escape(cell)
      for column, cell in enumerate(row)
    ]
    lines.append(line(cells))
  if table.published:
    lines += [
      r'    \midrule',
      line([rf'\multicolumn{{{count}}}{{l}}{{\emph{{{PUBLISHED}}}}}']),
      *(line(map(escape, row)) for row in table.published),
    ]
  lines += [r'    \bottomrule', r'  \end{tabular}']
  if table.notes:
    notes = ' '.join(map(escape, table.notes))
    lines += ['', r'  \smallskip']
    lines += [rf'  \parbox{{\linewidth}}{{\small {notes}}}']
  return '\n'.join([*lines, r'\end{table}']) + '\n'


_LATEX = str.maketrans(
  {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '±': r'$\pm$',
    '−': '$-$',
    '–': '--',
    '’': "'",
    **{character: f'\\{character}' for character in '&%$#_{}'},
  }
)


def to_text(table: Table) -> str:
  """Renders a table for the terminal; an asterisk marks what stands out."""
  starred = {column for _, column in table.bold}

  def marked(row, number=-1):
    """Cells of a column with marks are one wider: their digits stay in line."""
    return [
      cell
      + ('*' if (number, column) in table.bold else ' ' * (column in starred))
      for column, cell in enumerate(row)
    ]

  header = marked(table.header)
  rows = [marked(row, number) for number, row in enumerate(table.rows)]
  published = [marked(row) for row in table.published]
  widths = [
    max(map(len, cells))
    for cells in zip(header, *rows, *published, strict=True)
  ]

  def line(cells):
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]
    return '  '.join(padded).rstrip()

  rule = '-' * (sum(widths) + 2 * (len(widths) - 1))
  lines = [table.title, rule, line(header), rule, *map(line, rows), rule]
  if published:
    lines += [PUBLISHED, *map(line, published), rule]
  width = max(len(rule), 72)
  lines += [textwrap.fill(note, width) for note in table.notes]
  return '\n'.join(lines) + '\n'


def write(tables: Sequence[Table], folder: pathlib.Path, name: str) -> None:
  """Writes tables below each other, as `NAME.md` and `NAME.tex`."""
  for suffix, render in (('md', to_markdown), ('tex', to_latex)):
    text = '\n'.join(render(table) for table in tables)
    files.write_text(folder / f'{name}.{suffix}', text)
