"""Laws of the architecture: who may import whom, held by parsing imports."""

import ast
import graphlib
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The rooms of each package, from the bottom up: a room imports from itself and
# from those before it. The last one is what lies beside the rooms.
ROOMS = {
  'fmtl_jax': (
    *('version', 'compatibility', 'precision', 'random_bits', 'compression'),
    'storage',
    *('metrics', 'tasks', 'data'),
    *('balancing', 'federation', 'models', 'privacy', 'cohorts', 'execution'),
    'clients',
    *('server', 'secure_aggregation', 'rounds', 'algorithms', 'vertical'),
    *('adaptation', 'summaries'),
    *('measuring', 'evaluation', 'predictors', 'testing', 'running'),
    *('results', 'fitting'),
    *('moved', ''),
  ),
  'experiments': (
    *('configuration', 'running', 'folders', 'building', 'reporting'),
    *('studies', 'console', 'flower', 'benchmarks', ''),
  ),
}
BESIDE = ('checkout', 'startup', '__main__')
PROGRAMS = (
  'main',
  'sweep',
  'compare',
  'series',
  'unseen',
  'export',
  'gather',
  'generate',
)

# What a federation of plain functions needs: jax, optax and numpy, no more.
CORE = (
  *('compatibility', 'precision', 'random_bits', 'compression', 'metrics'),
  'tasks',
  *('balancing', 'federation', 'cohorts'),
  *('execution', 'clients', 'server', 'rounds', 'algorithms'),
  *('summaries', 'measuring', 'evaluation'),
  *('data.checks', 'data.client_checks', 'data.client_data'),
  *('data.client_sources', 'data.dataset', 'data.examples'),
  *('data.feature_checks', 'data.label_checks', 'data.partitions'),
  'data.precision',
  *(f'secure_aggregation.{name}' for name in ('fixed_point', 'messages')),
  *(f'secure_aggregation.{name}' for name in ('protocol', 'reducers')),
  *(f'secure_aggregation.{name}' for name in ('settings', 'shamir', 'sizes')),
  'secure_aggregation.whole_numbers',
  *(f'privacy.{name}' for name in ('accounting', 'ledgers', 'settings')),
  *(f'privacy.{name}' for name in ('banded', 'example_privacy', 'noise_keys')),
)
CORE_MAY_IMPORT = (
  *('dp_accounting', 'jax', 'jax_privacy', 'numpy', 'optax', 'scipy'),
)

# The only folder or file that may import a library.
HOMES = {
  'cryptography': 'secure_aggregation',
  'dp_accounting': 'privacy',
  'flax': 'models',
  'jax_privacy': 'privacy',
  'orbax': 'storage',
  'sklearn': 'data',
  'tensorflow_datasets': 'data',
}
NOWHERE = (
  'absl',
  'clu',
  'configs',
  'experiments',
  'ml_collections',
  'tensorflow',
  'tests',
  'torch',
)


def _is_core(module: str) -> bool:
  return module in CORE or module.split('.')[0] in CORE


def _files(package: str = 'fmtl_jax') -> dict[str, pathlib.Path]:
  """The files of a package by module name, `''` for the package itself."""
  files = {}
  for path in (ROOT / package).rglob('*.py'):
    parts = path.relative_to(ROOT / package).with_suffix('').parts
    files['.'.join(part for part in parts if part != '__init__')] = path
  return files


def imports(source: str) -> set[str]:
  """Full names of what a source imports, also inside functions.

  `from a import b` gives `a.b`, whether `b` is a module or a name in `a`.
  """
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      prefix = '.' * node.level + (f'{node.module}.' if node.module else '')
      found |= {f'{prefix}{alias.name}' for alias in node.names}
  return found


def _own_modules(names: set[str], files: dict[str, pathlib.Path]) -> set[str]:
  """The modules of the package among imported names."""
  own = set()
  for name in names:
    parts = name.split('.')
    if parts[0] == 'fmtl_jax':
      while '.'.join(parts[1:]) not in files:
        parts = parts[:-1]
      own.add('.'.join(parts[1:]))
  return own


def _run(code: str, **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
    capture_output=True,
    text=True,
    check=False,
  )


class ImportsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.files = _files()
    self.imports = {
      module: imports(path.read_text(encoding='utf-8'))
      for module, path in self.files.items()
    }

  def test_all_imports_are_seen(self):
    source = """
import jax.numpy as jnp, re
from . import sibling
from flax import nnx
def f():
  from tensorflow_datasets.core import utils
  if True:
    import orbax.checkpoint
"""
    self.assertEqual(
      imports(source),
      {
        'jax.numpy',
        're',
        'flax.nnx',
        '.sibling',
        'tensorflow_datasets.core.utils',
        'orbax.checkpoint',
      },
    )

  def test_the_core_is_there(self):
    self.assertContainsSubset(CORE, self.files)
    self.assertTrue(all(map(_is_core, [*CORE, 'algorithms.x'])))
    self.assertFalse(any(map(_is_core, ['', 'data', 'models', 'storage'])))

  def test_imports_are_absolute(self):
    for module, names in self.imports.items():
      for name in names:
        self.assertFalse(name.startswith('.'), f'{module} imports {name}')

  @parameterized.parameters(*NOWHERE)
  def test_the_package_knows_no_flags_and_no_experiments(self, library):
    for module, names in self.imports.items():
      self.assertNotIn(library, {n.split('.')[0] for n in names}, module)

  @parameterized.parameters(*HOMES)
  def test_a_library_has_one_home(self, library):
    users = [
      module
      for module, names in self.imports.items()
      if library in {name.split('.')[0] for name in names}
    ]
    self.assertNotEmpty(users)
    for module in users:
      self.assertEqual(module.split('.')[0], HOMES[library], module)

  def test_the_core_imports_jax_optax_and_itself(self):
    for module in filter(_is_core, self.files):
      for name in self.imports[module]:
        library = name.split('.')[0]
        if library != 'fmtl_jax':
          self.assertTrue(
            library in CORE_MAY_IMPORT or library in sys.stdlib_module_names,
            f'{module} imports {library}',
          )
      for own in _own_modules(self.imports[module], self.files):
        self.assertTrue(_is_core(own), f'{module} imports {own}')

  def test_dependencies_point_downwards(self):
    graph = {
      module: _own_modules(names, self.files) - {module}
      for module, names in self.imports.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # Raises at a cycle.


class RoomsTest(parameterized.TestCase):
  """Where things are: a room imports from those below it alone."""

  @parameterized.parameters(*ROOMS)
  def test_every_file_is_in_a_room(self, package):
    rooms = {module.split('.')[0] for module in _files(package)}
    self.assertSameElements(rooms, {*ROOMS[package]} | rooms & _beside(package))

  @parameterized.parameters(*ROOMS)
  def test_arrows_point_to_rooms_below(self, package):
    files = _files(package)
    place = {room: i for i, room in enumerate(ROOMS[package])}
    for module, path in files.items():
      room = module.split('.')[0]
      if room in _beside(package) or not room:
        continue
      for name in imports(path.read_text(encoding='utf-8')):
        other = _room_of(name, path, package)
        if other is None or other in BESIDE:
          continue
        self.assertLessEqual(
          place[other], place[room], f'{module} imports {name}'
        )

  @parameterized.parameters(
    ('fmtl_jax.rounds.algorithm', 'fmtl_jax', 'rounds'),
    ('fmtl_jax.precision', 'fmtl_jax', 'precision'),
    ('jax.numpy', 'fmtl_jax', None),
    ('..studies.train', 'experiments', 'studies'),
    ('.workdirs', 'experiments', 'folders'),
    ('jax', 'experiments', None),
  )
  def test_a_room_is_read_off_an_import(self, name, package, room):
    path = ROOT / 'experiments' / 'folders' / 'logs.py'
    self.assertEqual(_room_of(name, path, package), room)

  @parameterized.parameters('fmtl_jax', 'experiments', 'configs')
  def test_a_file_is_short(self, package):
    for path in (ROOT / package).rglob('*.py'):
      lines = path.read_text(encoding='utf-8').splitlines()
      self.assertLessEqual(len(lines), 500, path)

  @parameterized.parameters('fmtl_jax', 'experiments', 'configs')
  def test_a_function_is_short(self, package):
    for path in (ROOT / package).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.FunctionDef):
          first = node.body[0]
          has_docstring = ast.get_docstring(node) is not None
          start = first.end_lineno if has_docstring else first.lineno - 1
          length = node.end_lineno - start
          self.assertLessEqual(length, 90, f'{path}: {node.name}')


def _beside(package: str) -> set[str]:
  """What lies beside the rooms of a package and imports any of them."""
  return set() if package == 'fmtl_jax' else {*BESIDE, *PROGRAMS}


def _room_of(name: str, path: pathlib.Path, package: str) -> str | None:
  """The room that an import of a file is from, None for a library."""
  parts = name.split('.')
  if parts[0] == package:
    return parts[1]
  dots = len(name) - len(name.lstrip('.'))
  if not dots:
    return None
  folders = path.relative_to(ROOT).parts[:-dots]
  return (*folders, *filter(None, parts))[1]


def texts_without_encoding(source: str) -> list[int]:
  """Lines in which a text file is opened as the locale says."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Call):
      continue
    arguments, keywords = node.args, {k.arg: k.value for k in node.keywords}
    if isinstance(node.func, ast.Attribute):
      name = node.func.attr
      if name == 'open' and not (
        not arguments or _is_mode(arguments[0]) or 'mode' in keywords
      ):
        continue  # Another `open`, of an archive or an image.
    else:
      name = getattr(node.func, 'id', '')
      arguments = arguments[1:]
    if name in ('open', 'fdopen', 'TemporaryFile', 'NamedTemporaryFile'):
      mode = keywords.get('mode', arguments[0] if arguments else None)
      usual = 'r' if name in ('open', 'fdopen') else 'w+b'
      value = usual if mode is None else getattr(mode, 'value', '')
      is_text, place = 'b' not in str(value), 2
    elif isinstance(node.func, ast.Attribute):
      is_text = name in ('read_text', 'write_text')
      place = 0 if name == 'read_text' else 1
    else:
      continue
    if is_text and 'encoding' not in keywords and len(arguments) <= place:
      found.append(node.lineno)
  return found


def _is_mode(node: ast.expr) -> bool:
  return (
    isinstance(node, ast.Constant)
    and isinstance(node.value, str)
    and set(node.value) <= set('rwaxbt+')
  )


class EncodingTest(parameterized.TestCase):
  """Text files are UTF-8 wherever a locale says something else."""

  @parameterized.parameters(
    ("open(path, 'w')", True),
    ('open(path)', True),
    ("open(path, mode='a')", True),
    ("open(path, 'rb')", False),
    ("open(path, 'w', encoding='utf-8')", False),
    ('path.open()', True),
    ("path.open('w', newline='')", True),
    ("path.open('wb')", False),
    ("path.open('w', encoding='utf-8')", False),
    ('archive.open(name)', False),
    ('path.read_text()', True),
    ("path.read_text('utf-8')", False),
    ('path.write_text(text)', True),
    ("path.write_text(text, encoding='utf-8')", False),
    ("tempfile.NamedTemporaryFile('w')", True),
    ('tempfile.NamedTemporaryFile()', False),
  )
  def test_all_are_seen(self, source, is_text):
    self.assertEqual(texts_without_encoding(source), [1] * is_text)

  @parameterized.parameters('fmtl_jax', 'experiments', 'configs')
  def test_every_text_file_has_an_encoding(self, folder):
    paths = list((ROOT / folder).rglob('*.py'))
    self.assertNotEmpty(paths)
    for path in paths:
      source = path.read_text(encoding='utf-8')
      self.assertEqual(texts_without_encoding(source), [], path)


def draws_without_type(source: str) -> list[int]:
  """Lines that draw floats whose type depends on whether 64 bits are on."""
  place = {'uniform': 2, 'normal': 2, 'exponential': 2, 'gumbel': 2}
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(
      'jax.random.'
    ):
      name, keywords = node.func.attr, {k.arg for k in node.keywords}
      is_typed = 'dtype' in keywords or len(node.args) > place.get(name, 0)
      if name in place and not is_typed:
        found.append(node.lineno)
  return found


class DrawsTest(parameterized.TestCase):
  """What is drawn in rounds is the same with 64 bits on and off."""

  @parameterized.parameters(
    ('jax.random.uniform(key)', [1]),
    ('\njax.random.normal(key, (2,))', [2]),
    ('jax.random.normal(key, (2,), jnp.float32)', []),
    ('jax.random.uniform(key, dtype=jnp.float32)', []),
    ('jax.random.split(key)', []),
  )
  def test_all_are_seen(self, source, lines):
    self.assertEqual(draws_without_type(source), lines)

  def test_every_draw_names_its_type(self):
    for path in sorted((ROOT / 'fmtl_jax').rglob('*.py')):
      if path.parent.name != 'models' and path.name != 'testing.py':
        source = path.read_text(encoding='utf-8')
        self.assertEqual(draws_without_type(source), [], path)


def flag_names(source: str) -> list[str]:
  """Names of the flags that a module defines when it is imported."""
  found = []
  for statement in ast.parse(source).body:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
      continue
    for node in ast.walk(statement):
      match node:
        case ast.Call(func=ast.Attribute(attr=call), args=arguments):
          kind, _, own = call.partition('_')
          if kind.lower() == 'define' and own:
            # A function without a name to give defines the flag it is named by.
            is_named = arguments and isinstance(arguments[0], ast.Constant)
            found.append(arguments[0].value if is_named else own)
  return found


class FlagsTest(parameterized.TestCase):
  """One process imports all tests, and a flag is defined once in a process."""

  @parameterized.parameters(
    ("X = flags.DEFINE_bool('x', 0, '')\ndefine_path('y')", ['x']),
    (
      "A = config_files.define_config()\nl.define_path('y', '')",
      ['config', 'y'],
    ),
    ("def f():\n  flags.DEFINE_bool('x', 0, '')", []),
  )
  def test_all_are_seen(self, source, names):
    self.assertEqual(flag_names(source), names)

  def test_programs_that_tests_import_share_no_flag(self):
    files = _files('experiments')
    imported = set()
    for path in (ROOT / 'tests').rglob('*.py'):
      for name in imports(path.read_text('utf-8')):
        package, _, module = name.partition('.')
        if package == 'experiments' and module in files:
          imported.add(module)
    self.assertIn('benchmarks.descriptors', imported)
    owners = {}
    for module in sorted(imported):
      for flag in flag_names(files[module].read_text('utf-8')):
        other = owners.setdefault(flag, module)
        self.assertEqual(other, module, f'Both define --{flag}.')


class ImportTest(parameterized.TestCase):
  """Importing takes no device; an unknown platform tells who tries."""

  def _import(self, statement):
    return _run(statement, JAX_PLATFORMS='no_such_platform')

  def test_the_package_starts_no_backend(self):
    result = self._import('import fmtl_jax; print(fmtl_jax.__version__)')
    self.assertEqual(result.returncode, 0, result.stderr)

  def test_starting_one_would_be_noticed(self):
    result = self._import('import jax.numpy as jnp; jnp.zeros(1)')
    self.assertIn('no_such_platform', result.stderr)
    self.assertEqual(result.returncode, 1)

  def test_no_module_starts_a_backend(self):
    names = [f'fmtl_jax.{name}'.rstrip('.') for name in _files()]
    result = self._import(f'import {", ".join(sorted(names))}')
    self.assertEqual(result.returncode, 0, result.stderr)

  def test_what_is_slow_is_imported_when_it_is_used(self):
    code = f"""
import fmtl_jax
import sys
slow = {sorted(HOMES)}
print([name for name in slow if name in sys.modules])
fmtl_jax.models
print([name for name in slow if name in sys.modules])
"""
    result = _run(code)
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(result.stdout.splitlines(), ['[]', "['flax']"])


if __name__ == '__main__':
  absltest.main()
