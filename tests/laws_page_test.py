"""Law: the guide lists all laws, by the class that holds each.

Those of one algorithm, in a file of its name, may be there.
"""

import ast
import pathlib
import re

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALGORITHMS = ROOT / 'fmtl_jax' / 'algorithms'


def _classes(path):
  """The classes of a file that have tests."""
  return [
    node.name
    for node in ast.parse(path.read_text(encoding='utf-8')).body
    if isinstance(node, ast.ClassDef)
    and any(
      isinstance(part, ast.FunctionDef) and part.name.startswith('test')
      for part in node.body
    )
  ]


class LawsPageTest(absltest.TestCase):
  def test_every_class_of_laws_is_in_the_guide_once_and_no_other(self):
    of_algorithms = {
      f'{path.stem}_test' for path in ALGORITHMS.glob('[a-z]*.py')
    }
    guide = (ROOT / 'WORKSPACE.md').read_text(encoding='utf-8')
    _, _, section = guide.partition('\n## The laws\n')
    section = re.split(r'\n## ', section)[0]
    files = sorted((ROOT / 'tests' / 'laws').glob('*_test.py'))
    listed = re.findall(r'`(\w+_test\.\w+)`', section)
    classes = [(path.stem, name) for path in files for name in _classes(path)]
    needed = [
      f'{file}.{name}' for file, name in classes if file not in of_algorithms
    ]
    self.assertCountEqual(
      [name for name in listed if name.split('.')[0] not in of_algorithms],
      needed,
      'Give every class of tests/laws a row in The laws of WORKSPACE.md.',
    )
    self.assertContainsSubset(listed, [f'{f}.{name}' for f, name in classes])
    self.assertLen(listed, len(set(listed)))


if __name__ == '__main__':
  absltest.main()
