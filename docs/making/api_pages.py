"""Pages of the API: every public name, room by room.

Public are the names in `__all__` of the package and of its rooms; of a module
that is public itself and has none, those that it defines without an underscore.
Documented are they by Sphinx's autodoc; a name that is another one's object
points there.
"""

import ast
from collections.abc import Iterator, Mapping
import importlib
import inspect
import pathlib
import pkgutil
import re
import types
from typing import Any

import fmtl_jax

EXPERIMENTS = 'fmtl_jax.experiments'


def public_names(module: types.ModuleType) -> tuple[str, ...]:
  """The public names of a module, in its order."""
  listed = getattr(module, '__all__', None)
  if listed is not None:
    return tuple(listed)
  tree = ast.parse(pathlib.Path(str(module.__file__)).read_text('utf-8'))
  found: list[str] = []
  for node in tree.body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      found.append(node.name)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      found += [t.id for t in targets if isinstance(t, ast.Name)]
  return tuple(name for name in found if not name.startswith('_'))


def modules() -> dict[str, types.ModuleType]:
  """The public modules by their public names."""
  found = {'fmtl_jax': fmtl_jax}
  for room in pkgutil.iter_modules(fmtl_jax.__path__, 'fmtl_jax.'):
    module = importlib.import_module(room.name)
    if room.ispkg and list(getattr(module, '__all__', [])):
      found[room.name] = module
  experiments = importlib.import_module(EXPERIMENTS)
  for package in (fmtl_jax, experiments):
    name = 'fmtl_jax' if package is fmtl_jax else EXPERIMENTS
    for public in package.__all__:
      value = getattr(package, public)
      if isinstance(value, types.ModuleType):
        found[f'{name}.{public}'] = value
  return dict(sorted(found.items()))


def needed() -> list[str]:
  """The names that have to be documented, whatever pages there are."""
  return [
    f'{module}.{name}'
    for module, loaded in modules().items()
    for name in public_names(loaded)
  ]


def pages() -> dict[str, str]:
  """A page for each public module, and the list of them."""
  made = {}
  homes: dict[int, str] = {}
  found = modules()
  for module, loaded in found.items():
    made[f'api/{module}'] = _page(module, loaded, homes)
  listed = '\n'.join(found)
  made['api/index'] = (
    '# API\n\nEvery public name, by module. What is renamed or moved works for '
    'two more minor releases.\n\n'
    f'```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n'
  )
  return made


def _page(module: str, loaded: types.ModuleType, homes: dict[int, str]) -> str:
  """The page of one module."""
  lines = ['.. py:module:: ' + module, '']
  doc = inspect.cleandoc(loaded.__doc__ or '')
  blocks = [as_rst(doc), '']
  for name in public_names(loaded):
    blocks += [*_entry(module, loaded, name, homes), '']
  return '\n'.join(
    [f'# `{module}`', '', '```{eval-rst}', *lines, *blocks, '```', '']
  )


def _entry(
  module: str, loaded: types.ModuleType, name: str, homes: dict[int, str]
) -> Iterator[str]:
  """Lines of reStructuredText that document a name."""
  full, value = f'{module}.{name}', getattr(loaded, name)
  if isinstance(value, types.ModuleType):
    first = inspect.cleandoc(value.__doc__ or '').splitlines()[0]
    yield f'* :doc:`{full}`: {as_rst(first)}'
    return
  is_defined = inspect.isclass(value) or inspect.isroutine(value)
  home = homes.setdefault(id(value), full) if is_defined else full
  if home != full:
    yield f'.. py:data:: {name}\n'
    yield f'   Is :py:obj:`{home}`.'
  elif inspect.isclass(value):
    yield f'.. autoclass:: {full}\n   :members:'
    if _has_fields(value):
      yield '   :exclude-members: ' + ', '.join(_fields(value))
  elif inspect.isroutine(value):
    yield f'.. autofunction:: {full}'
  else:
    shown = _shown(value)
    yield f'.. py:data:: {name}'
    if shown:
      yield f'   :value: {shown}'
    yield ''
    yield f'   {as_rst(_comment(loaded, name))}'


def _has_fields(value: type) -> bool:
  return bool(_fields(value))


def _fields(value: type) -> list[str]:
  """Fields of a class, which its docstring describes as attributes."""
  named = getattr(value, '_fields', ())
  return [*named, *getattr(value, '__dataclass_fields__', {})]


def _shown(value: Any) -> str:
  """A value in one short line; '' if it has none."""
  if isinstance(value, Mapping):
    return '{' + ', '.join(map(repr, value)) + '}' if len(value) < 12 else ''
  text = repr(value)
  return text if len(text) < 70 and '<' not in text else ''


def _comment(module: types.ModuleType, name: str) -> str:
  """The comment above a constant, or beside it, in whatever file sets it."""
  files = [pathlib.Path(str(module.__file__))]
  if hasattr(module, '__path__'):
    files += sorted(files[0].parent.rglob('*.py'))
  for path in files:
    lines = path.read_text(encoding='utf-8').splitlines()
    for i, line in enumerate(lines):
      if re.match(rf'{re.escape(name)}(: [^=]*)? = ', line):
        above: list[str] = []
        while i and lines[i - 1].startswith('# '):
          i -= 1
          above.insert(0, lines[i][2:])
        beside = line.partition('  # ')[2]
        return ' '.join([*above, beside]).strip()
  return ''


_MARKS = re.compile(r'(`[^`]*`)')


def as_rst(text: str) -> str:
  """A docstring as reStructuredText that means what it says.

  Docstrings are text with code in backticks and indented parts, which are shown
  as they are; nothing else in them is markup.
  """
  lines: list[str] = []
  in_block = in_code = False
  for line in text.splitlines():
    if line.startswith('```'):
      in_code = not in_code
      lines += ['', f'.. code-block:: {line[3:]}' if in_code else '', '']
    elif in_code:
      lines.append(f'   {line}')
    elif re.match(r'`[^`]+`  +', line):  # A table of names is a list.
      line = re.sub(r'  +', ' ', line)
      lines += ['', f'* {escaped(line)}']
    elif line.startswith('  ') and (in_block or not lines or not lines[-1]):
      if not in_block:
        lines += ['::', '']
      in_block = True
      lines.append(' ' * 2 + line)
    elif not line.strip() and in_block:
      lines.append('')
    else:
      in_block = False
      lines.append(escaped(line))
  return '\n'.join(lines)


def escaped(line: str) -> str:
  """One line without markup but backticks."""
  parts = _MARKS.split(line)
  for i in range(0, len(parts), 2):
    part = re.sub(r'([\\*|]|_(?=\W|$)|(?<=\w)_\b)', r'\\\1', parts[i])
    # Code ends where something else than a word begins.
    if i and re.match(r'[^\s.,;:!?)\]}\'"/>-]', part):
      part = f'\\ {part}'
    if i < len(parts) - 1 and re.search(r'[^\s(\[{<\'"/-]$', part):
      part += '\\ '
    parts[i] = part
  return ''.join(parts)
