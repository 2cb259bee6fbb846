"""Pages of the laws: the files of tests/laws, class by class.

Every class that has tests is a section of its file's page with a label of its
own, so that tables of laws and the pages of algorithms point to what holds
them.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
import pathlib
from typing import NamedTuple

from docs.making import markdown

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAWS = ROOT / 'tests' / 'laws'


class Law(NamedTuple):
  """A class of tests.

  Attributes:
    file: The stem of its file.
    name: Of the class.
    first: Its first line.
    last: Its last line.
    tests: Names of its tests, in words.
    strings: What it names: its strings.
  """

  file: str
  name: str
  first: int
  last: int
  tests: tuple[str, ...]
  strings: frozenset[str]

  @property
  def label(self) -> str:
    """As guides name it."""
    return f'{self.file}.{self.name}'


def target(label: str) -> str:
  """The label of its section."""
  return 'law-' + label.replace('.', '-').replace('_', '-').lower()


def laws(folder: pathlib.Path = LAWS) -> Iterator[Law]:
  """All classes of tests, file by file."""
  for path in sorted(folder.glob('*_test.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node in tree.body:
      if not isinstance(node, ast.ClassDef):
        continue
      tests = [
        part.name.removeprefix('test_').replace('_', ' ')
        for part in node.body
        if isinstance(part, ast.FunctionDef) and part.name.startswith('test')
      ]
      if tests:
        lines = [node.lineno, *(d.lineno for d in node.decorator_list)]
        yield Law(
          path.stem,
          node.name,
          min(lines),
          node.end_lineno or node.lineno,
          tuple(tests),
          frozenset(_strings(node)),
        )


def _strings(node: ast.AST) -> Iterator[str]:
  for part in ast.walk(node):
    if isinstance(part, ast.Constant) and isinstance(part.value, str):
      yield part.value


def pages(found: Sequence[Law]) -> dict[str, str]:
  """Pages by their names: one of each file, and a list of them."""
  by_file: dict[str, list[Law]] = {}
  for law in found:
    by_file.setdefault(law.file, []).append(law)
  made = {f'laws/{file}': _page(file, own) for file, own in by_file.items()}
  # They are in no table of contents, which every page would have to show.
  made = {
    name: f'---\norphan: true\n---\n\n{text}' for name, text in made.items()
  }
  made['laws/index'] = markdown.page(
    'Files of the laws',
    [
      'The files of `tests/laws`, class by class.',
      '\n'.join(
        f'- [`{file}`]({file}.md): '
        + ', '.join(f'`{law.label}`' for law in own)
        for file, own in by_file.items()
      ),
    ],
  )
  return made


def _page(file: str, found: Sequence[Law]) -> str:
  path = LAWS / f'{file}.py'
  text = path.read_text(encoding='utf-8')
  doc = ast.get_docstring(ast.parse(text)) or file
  lines = text.splitlines()
  parts = [markdown.prose(doc), f'`python tests/laws/{file}.py` runs it.']
  show = '```{{code-block}} python\n\n{}\n```'.format
  last = 0
  for law in found:
    before = '\n'.join(lines[last : law.first - 1]).strip('\n')
    if before.strip():
      parts.append(show(before))
    code = '\n'.join(lines[law.first - 1 : law.last])
    parts += [
      f'({target(law.label)})=\n## {law.name}',
      '\n'.join(f'- {markdown.escaped(test)}' for test in law.tests),
      show(code),
    ]
    last = law.last
  return markdown.page(f'`{file}`', parts)


def fixed_point(name: str, file: str) -> str:
  """Where an algorithm comes to rest, or why nowhere, as its test says."""
  own = LAWS / f'{file}_test.py'
  for path in (own, LAWS / 'fixed_points_test.py'):
    if not path.exists():
      continue
    for key, value in _constants(path):
      if key == 'FIXED_POINT':
        return str(value)
      if key == 'NO_FIXED_POINT' and isinstance(value, Mapping):
        return str(value.get(name, ''))
  return ''


def _constants(path: pathlib.Path) -> Iterator[tuple[str, object]]:
  """Names of a file and their values, where these are written out."""
  for node in ast.parse(path.read_text(encoding='utf-8')).body:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      try:
        yield node.targets[0].id, ast.literal_eval(node.value)
      except ValueError:
        continue
