"""Law: what the README shows is there, and works as it stands there."""

import pathlib
import re

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


class CommandsTest(absltest.TestCase):
  def test_a_fresh_machine_needs_one_of_two_commands(self):
    blocks = re.findall(r'^```bash\n(.*?)^```$', README, re.M | re.S)
    self.assertLen(blocks, 2)
    for block in blocks:
      self.assertEqual(block.count('\n'), 1, block)
    main, tests = blocks
    self.assertIn('pip install', main)
    self.assertIn('python -m experiments.main --config=', main)
    script = tests.split()[-1]
    self.assertTrue((ROOT / script).is_file(), script)

  def test_files_that_are_named_exist(self):
    links = re.findall(r'\]\((?!https?:)([^)]+)\)', README)
    self.assertContainsSubset(
      ['docs/figures/layers.svg', 'docs/figures/table3.svg'], links
    )
    for name in links:
      self.assertTrue((ROOT / name).is_file(), name)


if __name__ == '__main__':
  absltest.main()
