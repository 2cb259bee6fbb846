"""Laws of programs: what is set before JAX starts, and how one is resumed."""

import pathlib
import shlex
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments.console import programs

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands

SMALL = commands.SMALL

setUpModule = commands.start
tearDownModule = commands.stop


class HowToResumeTest(parameterized.TestCase):
  @parameterized.parameters(
    (('--config=a.py', '--cases=x,y'), ['--config=a.py', '--cases=x,y']),
    (
      ('--config=a.py', '--workdir=old', '--debug'),
      ['--config=a.py', '--debug'],
    ),
    (('--config=a.py', '--workdir', 'old'), ['--config=a.py']),
    (('-workdir', 'o', '--config', 'a.py'), ['--config', 'a.py']),
    (('--workdir', '--odd name', '--debug'), ['--debug']),
    (('--resume=never', '--debug', '--resume', 'must'), ['--debug']),
    (('-workdir=old', '--cases', 'workdir'), ['--cases', 'workdir']),
    (
      ('--config.model.hidden=(4, 2)', "--x='$HOME'"),
      ['--config.model.hidden=(4, 2)', "--x='$HOME'"],
    ),
  )
  def test_it_is_the_command_with_its_folder(self, arguments, wanted):
    with mock.patch.object(sys, 'argv', ['main.py', *arguments]):
      found = programs.how_to_resume('main', pathlib.Path("runs/a 'b"))
    start = 'To resume: '
    self.assertStartsWith(found, start)
    self.assertEqual(
      shlex.split(found.removeprefix(start)),
      ['python', '-m', 'experiments.main', *wanted, "--workdir=runs/a 'b"],
    )


class CompiledOnceTest(commands.CommandTestCase):
  MODULE = 'main'

  def test_a_second_process_finds_what_the_first_has_compiled(self):
    files = []
    for workdir in ('first', 'second'):
      code, _, errors = self.run_command(*SMALL, f'--workdir={workdir}')
      self.assertEqual(code, 0, errors)
      folder = pathlib.Path(commands.CACHE.name, 'fmtl_jax', 'xla')
      files.append({p.name for p in folder.iterdir() if '-atime' not in p.name})
    self.assertNotEmpty(files[0])
    self.assertEqual(*files)


if __name__ == '__main__':
  absltest.main()
