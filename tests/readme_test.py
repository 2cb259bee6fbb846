"""Law: what the README shows works as it stands there."""

import contextlib
import io
import pathlib
import re

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def _blocks(language):
  """The code blocks of a language."""
  return re.findall(rf'^```{language}\n(.*?)^```$', README, re.M | re.S)


class QuickstartTest(absltest.TestCase):
  def test_it_learns_from_the_arrays_it_makes(self):
    (code,) = _blocks('python')
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
      exec(compile(code, 'README.md', 'exec'), {'__name__': 'quickstart'})
    shown = re.findall(r'^(loss|accuracy) ([0-9.]+)$', output.getvalue(), re.M)
    self.assertEqual([name for name, _ in shown], ['loss', 'accuracy'])
    loss, accuracy = (float(value) for _, value in shown)
    self.assertLess(loss, 0.3)  # A guess has 0.69.
    self.assertGreaterEqual(accuracy, 0.9)


class CommandsTest(absltest.TestCase):
  def test_a_fresh_machine_needs_one_of_two_commands(self):
    blocks = _blocks('bash')
    self.assertLen(blocks, 2)
    for block in blocks:
      self.assertEqual(block.count('\n'), 1, block)
    main, tests = blocks
    self.assertIn('pip install', main)
    self.assertIn('python -m experiments.main --config=', main)
    script = tests.split()[-1]
    self.assertTrue((ROOT / script).is_file(), script)

  def test_files_that_are_named_exist(self):
    configs = re.findall(r'--(?:config|sweep)=([\w/]+\.py)', README)
    self.assertContainsSubset(
      ['configs/digits.py', 'configs/har.py', 'configs/sweeps/har.py'], configs
    )
    links = re.findall(r'\]\((?!https?:)([^)]+)\)', README)
    modules = re.findall(r'python -m ([\w.]+)', README)
    files = [module.replace('.', '/') + '.py' for module in modules]
    for name in (*configs, *links, *files):
      self.assertTrue((ROOT / name).is_file(), name)

  def test_flags_that_are_named_exist(self):
    known = '\n'.join(
      path.read_text() for path in (ROOT / 'experiments').rglob('*.py')
    )
    flags = set(re.findall(r'--(\w+)(?=[\s=`.])', README))
    self.assertContainsSubset({'config', 'cases', 'dry_run', 'workdir'}, flags)
    for flag in flags:
      self.assertIn(f"'{flag}'", known)


if __name__ == '__main__':
  absltest.main()
