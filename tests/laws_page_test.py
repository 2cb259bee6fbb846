"""Law: the guide lists all laws, by the class that holds each."""

import ast
import pathlib
import re

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[1]


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
    guide = (ROOT / 'WORKSPACE.md').read_text(encoding='utf-8')
    _, _, section = guide.partition('\n## The laws\n')
    section = re.split(r'\n## ', section)[0]
    files = sorted((ROOT / 'tests' / 'laws').glob('*_test.py'))
    self.assertCountEqual(
      re.findall(r'`(\w+_test\.\w+)`', section),
      [f'{path.stem}.{name}' for path in files for name in _classes(path)],
      'Give every class of tests/laws a row in The laws of WORKSPACE.md.',
    )


if __name__ == '__main__':
  absltest.main()
