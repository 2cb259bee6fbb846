"""Markdown of generated pages: text, tables and the prose of docstrings."""

from collections.abc import Iterable, Sequence
import inspect
import re
import textwrap

from docs.making import equations

_SPECIAL = re.compile(r'([\\*_<>$\[\]|#~^{}])')
_URL = re.compile(r'(https?://[^\s,;]*[^\s,;.)])')


def escaped(text: str) -> str:
  """Text that means what it says, with links where it has addresses."""
  parts = _URL.split(text)
  for i, part in enumerate(parts):
    parts[i] = f'<{part}>' if i % 2 else _SPECIAL.sub(r'\\\1', part)
  return ''.join(parts)


def sentence(text: str) -> str:
  """Prose of a docstring: code in backticks, formulas, and text."""
  found = ''
  for i, part in enumerate(text.split('`')):
    if i % 2:
      found += f'`{part}`'
      continue
    for words, is_formula in equations.inline(part):
      if is_formula:
        lead = words[: len(words) - len(words.lstrip())]
        found += f'{lead}${equations.tex(words.strip())}$'
      else:
        found += escaped(words)
  return found


def prose(doc: str) -> str:
  """Paragraphs of a docstring; indented ones are equations, or as they are."""
  found = []
  for paragraph in re.split(r'\n\s*\n', inspect.cleandoc(doc)):
    if not paragraph.startswith(' '):
      found.append(sentence(' '.join(paragraph.split())))
    elif equations.is_block(paragraph):
      found += [
        f'$$\n{equations.tex(x)}\n$$' for x in equations.lines(paragraph)
      ]
    else:
      found.append(f'```text\n{textwrap.dedent(paragraph)}\n```')
  return '\n\n'.join(found)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table; cells are Markdown of one line."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(
    f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in row)} |'
    for row in lines
  )


def page(title: str, parts: Iterable[str]) -> str:
  """A page: its title and what is not empty of its parts."""
  return '\n\n'.join([f'# {title}', *filter(None, parts)]) + '\n'
