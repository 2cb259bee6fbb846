"""Equations: the plain notation of docstrings as TeX.

Docstrings write `v <- v - eta (grad F(v) + lambda / 2 ||v - w||^2)`, which is
read in a terminal as it stands; a page shows it as mathematics. What is no part
of the notation stays text.
"""

from collections.abc import Iterator
import re

_GREEK = (
  *('alpha', 'beta', 'gamma', 'delta', 'epsilon', 'eta', 'theta', 'lambda'),
  *('mu', 'sigma', 'tau', 'phi', 'rho', 'Delta', 'Sigma'),
)
_NAMES = {
  **{name: f'\\{name}' for name in _GREEK},
  'eps': r'\varepsilon',
  'grad': r'\nabla',
  'hess': r'\nabla^{2}',
  'sum': r'\sum',
  'in': r'\in',
}
_FUNCTIONS = ('argmin', 'cos', 'max', 'mean', 'min', 'sign')
_OPERATORS = {
  '<-': r'\leftarrow',
  '<=': r'\le',
  '>=': r'\ge',
  '...': r'\dots',
  '*': r'\cdot',
  '[': r'\lbrack',
  ']': r'\rbrack',
}
_SCRIPT = r"\{[^{}]*\}|[A-Za-z0-9']+"
_TOKEN = re.compile(
  r'(?P<gap> {2,})|(?P<space> )'
  r'|(?P<name>[A-Za-z]+)(?P<digits>\d*)|(?P<number>\d+(\.\d+)?)'
  r'|(?P<norm>\|\|?)|(?P<operator><-|<=|>=|\.\.\.|[-+*/=<>()\[\],;:.])'
  rf"|(?P<below>_({_SCRIPT}))|(?P<above>\^({_SCRIPT}))|(?P<prime>'+)"
)
_CLOSING = {'(': ')', '[': ']'}
_WORDS = re.compile(r'^\\text\{([^{}]*)\}$')
# What says that indented lines are equations, and that words are a formula.
_BLOCK = re.compile(r'<-| [<=>] |\|\||\bsum_|\bargmin\b')
_STRONG = re.compile(r'[_^|]|<-| [=<>] |<=|>=|\b(' + '|'.join(_GREEK) + r')\b')


class NotationError(ValueError):
  """A character that is no part of the notation."""


def is_block(text: str) -> bool:
  """Whether indented lines of a docstring are equations."""
  return _BLOCK.search(text) is not None


def lines(block: str) -> list[str]:
  """The equations of indented lines; those indented further go on with one.

  Args:
    block: The lines, with what they have in common of their indentation.
  """
  given = [line for line in block.splitlines() if line.strip()]
  least = min(len(line) - len(line.lstrip()) for line in given)
  found: list[str] = []
  for line in given:
    if found and line[least] == ' ':
      found[-1] += f' {line.strip()}'
    else:
      found.append(line.strip())
  return found


def tex(text: str) -> str:
  """One line of the notation as TeX.

  Raises:
    NotationError: If it has a character that means nothing there.
  """
  return _Reader(text).read()


def inline(text: str) -> Iterator[tuple[str, bool]]:
  """Parts of a sentence, and whether each is a formula.

  A formula is as many words in a row as are notation, at least one of which
  could be nothing else: `eta lambda < 2`, `c_m`.

  Args:
    text: Without line ends.
  """
  run: list[str] = []
  plain = ''
  for word in [*re.findall(r'\s*\S+|\s+$', text), None]:
    if word is not None and word.strip() and _is_notation(word.strip()):
      run.append(word)
      if not re.search(r"[^|>)\]}'][,.;:]$|[|)\]}'][,.;:]$", word):
        continue
    before, formula, after = _trimmed(run)
    if formula:
      if plain + before:
        yield plain + before, False
      yield formula, True
      plain = after
    else:
      plain += ''.join(run)
    ended = run and word is run[-1]
    run = []
    if word is not None and not ended:
      plain += word
  if plain:
    yield plain, False


def _is_notation(word: str) -> bool:
  """Whether a word of a sentence could be a part of a formula."""
  if not re.fullmatch(r"[-\w^{}|()\[\]<>=+*/.,;:']+", word) or '--' in word:
    return False
  try:
    tokens = list(_tokens(word))
  except NotationError:
    return False
  for kind, match in tokens:
    name = match['name'] if kind == 'name' else ''
    if name in ('in', 'eps') or (match['digits'] and len(name) > 1):
      return False
    if name in ('sum', *_FUNCTIONS):
      if not re.match(r'\(|_(\{|\w\b|\w\'|theta\b)', word[match.end() :]):
        return False
    elif len(name) > 1 and name not in _NAMES:
      return False
    if name in ('A', 'I', 'a') and word == name:
      return False
  return True


def _trimmed(run: list[str]) -> tuple[str, str, str]:
  """What stands before a formula in a run of words, it, and what after."""
  text = ''.join(run)
  match = re.fullmatch(r'(\s*[(\[]?)(.*?)([,.;:]*)', text, re.DOTALL)
  assert match is not None
  before, formula, after = match.groups()
  if before.strip() and _balanced(before.strip() + formula):
    before, formula = before[:-1], before[-1] + formula
  if not _balanced(formula) and formula.endswith(')'):
    formula, after = formula[:-1], ')' + after
  if not _STRONG.search(formula) or not _balanced(formula):
    return '', '', ''
  if re.match(r'[-+=/<>]( |$)', formula) or re.search(r' [-+=/<>]$', formula):
    return '', '', ''
  return before, formula, after


def _balanced(text: str) -> bool:
  return all(text.count(a) == text.count(b) for a, b in _CLOSING.items())


def _tokens(text: str) -> Iterator[tuple[str, re.Match[str]]]:
  """The kind and the match of every token."""
  place = 0
  while place < len(text):
    match = _TOKEN.match(text, place)
    if match is None:
      raise NotationError(
        f'Expected the notation of equations, got {text[place]!r} in {text!r}.'
      )
    kind = next(
      name
      for name, value in match.groupdict().items()
      if value and name != 'digits'
    )
    yield kind, match
    place = match.end()


class _Reader:
  """Reads one line from the left; its output is a list of atoms."""

  def __init__(self, text: str):
    self.text = text
    self.tokens = list(_tokens(text))
    self.place = 0

  def read(self) -> str:
    atoms: list[str] = []
    while self.place < len(self.tokens):
      atoms += self._until('')
      if self.place < len(self.tokens):  # A bracket that nothing opened.
        atoms.append(self.tokens[self.place][1][0])
        self.place += 1
    return _joined(atoms)

  def _until(self, end: str) -> list[str]:
    """Atoms up to a closing bracket or norm, which is not read."""
    atoms: list[str] = []
    while self.place < len(self.tokens):
      kind, match = self.tokens[self.place]
      word = match[0]
      if word in (')', ']') or (
        kind == 'norm' and word == end and self._touches(match)
      ):
        break
      self.place += 1
      if kind == 'space':
        continue
      if kind == 'operator' and word == '/' and atoms:
        below = self._atom()
        atoms[-1] = rf'\frac{{{_bare(atoms[-1])}}}{{{_bare(below)}}}'
      elif kind in ('below', 'above', 'prime') and atoms:
        atoms[-1] += _script(kind, word)
      elif word == '+' and self._is_script(match):
        atoms[-1] += '^{+}'
      else:
        atoms.append(self._begun(kind, match))
    return atoms

  def _atom(self) -> str:
    """The next atom, with its scripts."""
    while self.tokens[self.place][0] == 'space':
      self.place += 1
    kind, match = self.tokens[self.place]
    self.place += 1
    atom = self._begun(kind, match)
    while self.place < len(self.tokens):
      kind, match = self.tokens[self.place]
      if kind not in ('below', 'above', 'prime'):
        break
      atom += _script(kind, match[0])
      self.place += 1
    return atom

  def _begun(self, kind: str, match: re.Match[str]) -> str:
    """What begins with a token that was read."""
    word = match[0]
    if kind == 'gap':
      return r'\quad '
    if kind == 'name':
      return self._name(match)
    if kind == 'norm':
      inner = _joined(self._until(word))
      self.place += 1
      ends = (r'\lVert ', r'\rVert ') if word == '||' else ('|', '|')
      return f'{{{ends[0]}{inner}{ends[1]}}}'
    if word in _CLOSING:
      inner = _joined(self._until(_CLOSING[word]))
      self.place += 1
      left, right = ('(', ')') if word == '(' else (r'\lbrack ', r'\rbrack ')
      return f'{left}{inner}{right}'
    if word == '<' and self._follows(match).strip():
      return r'\langle '
    if word == '>' and self._touches(match):
      return r'\rangle '
    return _OPERATORS.get(word, word)

  def _name(self, match: re.Match[str]) -> str:
    """A variable, a function, or words in a formula."""
    name, digits = match['name'], match['digits']
    if name == 'sqrt' and self._follows(match) == '(':
      self.place += 1
      inner = _joined(self._until(')'))
      self.place += 1
      return rf'\sqrt{{{inner}}}'
    below = f'_{{{digits}}}' if digits else ''
    if name in _FUNCTIONS:
      return rf'\operatorname{{{name}}}'
    if name in _NAMES and (name != 'in' or not self._is_text(match)):
      return _NAMES[name] + below
    if len(name) == 1:
      return name + below
    return rf'\text{{{name}{digits}}}'

  def _is_text(self, match: re.Match[str]) -> bool:
    """Whether a word stands after another one."""
    before = re.search(r'([A-Za-z]+) +$', self.text[: match.start()])
    return before is not None and len(before[1]) > 1

  def _follows(self, match: re.Match[str]) -> str:
    return self.text[match.end() : match.end() + 1]

  def _touches(self, match: re.Match[str]) -> bool:
    """Whether a token stands right behind what is not a space."""
    before = self.text[: match.start()][-1:]
    return bool(before.strip()) and before not in '(['

  def _is_script(self, match: re.Match[str]) -> bool:
    """Whether a plus belongs to the name before it, as in `c_m+ - c_m`."""
    return self._touches(match) and not self._follows(match).strip(' ),.;')


def _script(kind: str, word: str) -> str:
  """A subscript, a superscript or primes."""
  if kind == 'prime':
    return word
  inner = word[1:]
  sign = word[0]
  if inner.startswith('{'):
    return f'{sign}{{{tex(inner[1:-1])}}}'
  if inner in _NAMES and len(inner) > 2:  # `s_mu` has two indices.
    return f'{sign}{{{_NAMES[inner]}}}'
  if len(inner) > 2 and inner.isalpha():
    return rf'{sign}{{\text{{{inner}}}}}'
  return f'{sign}{{{inner}}}'


def _bare(atom: str) -> str:
  """Without the brackets around all of it."""
  if atom.startswith('(') and atom.endswith(')'):
    depth = 0
    for place, letter in enumerate(atom):
      depth += (letter == '(') - (letter == ')')
      if depth == 0 and place < len(atom) - 1:
        return atom
    return atom[1:-1]
  return atom


def _joined(atoms: list[str]) -> str:
  """Atoms in a row; words get the spaces between them back."""
  parts: list[str] = []
  for atom in atoms:
    last = parts[-1] if parts else ''
    if _WORDS.fullmatch(atom) and _WORDS.fullmatch(last):
      parts[-1] = f'{last[:-1]} {atom[6:]}'
    else:
      parts.append(atom)
  if len(parts) > 1:
    parts = [_WORDS.sub(r'\\text{ \1 }', part) for part in parts]
  return ' '.join(parts)
