"""Law: a locale that knows ASCII alone changes no file."""

import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

from experiments.reporting import reports
from experiments.reporting import tables
from experiments.studies import models_of_runs

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands


class LocalesTest(absltest.TestCase):
  def test_files_are_whole_where_a_locale_knows_ascii_alone(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    result = subprocess.run(
      (
        *(sys.executable, '-m', 'experiments.main', *commands.SMALL),
        *('--cases=majority', '--config.run.seeds=2', '--workdir=run'),
      ),
      cwd=folder,
      env=commands.environment()
      | {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONIOENCODING': ''},
      capture_output=True,
      check=False,
    )
    self.assertEqual((result.returncode, result.stderr), (0, b''))
    self.assertIn(rb'\xb1', result.stdout)  # All that it can show.
    run = folder / 'run'
    config, _ = models_of_runs.read_config(run)
    shown = reports.build_tables(reports.load_records(run), config)
    for name, render in (
      ('results.md', tables.to_markdown),
      ('results.tex', tables.to_latex),
    ):
      wanted = '\n'.join(map(render, shown))
      self.assertEqual((run / name).read_bytes(), wanted.encode())
    self.assertIn('±', (run / 'results.md').read_text(encoding='utf-8'))
    self.assertIn('±', (run / 'log.txt').read_text(encoding='utf-8'))


if __name__ == '__main__':
  absltest.main()
