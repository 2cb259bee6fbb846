"""Laws of the pages: examples and commands work as they stand there."""

import contextlib
import doctest
import io
import os
import pathlib
import re
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = {
  path.name: path.read_text(encoding='utf-8')
  for path in sorted((ROOT / 'docs').glob('*.md'))
}
ALL = '\n'.join(PAGES.values())


def _blocks(page, language):
  """The code blocks of a language."""
  return re.findall(rf'^```{language}\n(.*?)^```$', PAGES[page], re.M | re.S)


class ExamplesTest(parameterized.TestCase):
  @parameterized.parameters(
    *(name for name, text in PAGES.items() if '>>> ' in text)
  )
  def test_sessions_answer_as_they_say(self, name):
    code = ''.join(
      block for block in _blocks(name, 'python') if block.startswith('>>>')
    )
    test = doctest.DocTestParser().get_doctest(code, {}, name, name, 0)
    said = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    self.assertEqual(
      runner.run(test, out=said.write).failed, 0, said.getvalue()
    )

  def test_the_quickstart_learns_from_the_arrays_it_makes(self):
    (code,) = _blocks('quickstart.md', 'python')
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
      exec(compile(code, 'quickstart', 'exec'), {'__name__': 'quickstart'})
    shown = re.findall(r'^(loss|accuracy) ([0-9.]+)$', output.getvalue(), re.M)
    self.assertEqual([name for name, _ in shown], ['loss', 'accuracy'])
    loss, accuracy = (float(value) for _, value in shown)
    self.assertLess(loss, 0.3)  # A guess has 0.69.
    self.assertGreaterEqual(accuracy, 0.9)

  def test_the_source_of_a_csv_reads_the_file_that_its_page_makes(self):
    """Its config is one, and names the source; nothing is trained here."""
    files = dict(
      re.findall(
        r'^`([\w/]+\.py)`:\n\n```python\n(.*?)^```$',
        PAGES['own_data.md'],
        re.M | re.S,
      )
    )
    spaces = {name: {'__name__': name} for name in files}
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(folder)
    for name, code in files.items():
      exec(compile(code, name, 'exec'), spaces[name])
    config = spaces['mine.py']['get_config']()
    module, _, function = config.data.name.partition(':')
    self.assertIn(f'{module.replace(".", "/")}.py', files)
    source = spaces['mycode/sources.py'][function](config.data)
    self.assertEqual(source.features.shape, (12 * 40, 8))
    self.assertLen(source.tasks, config.data.clients)
    self.assertLen(np.unique(source.keys), config.data.clients)


class CommandsTest(absltest.TestCase):
  def test_files_that_are_named_exist(self):
    configs = re.findall(r'--(?:config|sweep)=(configs/[\w/]+\.py)', ALL)
    self.assertContainsSubset(
      ['configs/digits.py', 'configs/har.py', 'configs/sweeps/har.py'], configs
    )
    modules = re.findall(r'python -m (experiments[\w.]+)', ALL)
    files = [module.replace('.', '/') + '.py' for module in modules]
    for name in (*configs, *files):
      self.assertTrue((ROOT / name).is_file(), name)

  def test_flags_that_are_named_exist(self):
    known = '\n'.join(
      path.read_text() for path in (ROOT / 'experiments').rglob('*.py')
    )
    text = PAGES['commands.md'] + PAGES['own_data.md']
    flags = set(re.findall(r'--(\w+)(?=[\s=`.])', text))
    self.assertContainsSubset({'config', 'cases', 'dry_run', 'workdir'}, flags)
    for flag in flags:
      self.assertIn(f"'{flag}'", known)

  def test_what_is_included_is_there(self):
    pattern = r'```\{include\} (\.\./\S+)\n((?::.*\n)*)```'
    found = re.findall(pattern, ALL)
    self.assertGreater(len(found), 5)
    for path, options in found:
      text = (ROOT / 'docs' / path).read_text(encoding='utf-8')
      for mark in re.findall(r': "(.*)"', options):
        self.assertIn(f'\n{mark}\n', text)


if __name__ == '__main__':
  absltest.main()
