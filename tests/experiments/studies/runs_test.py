"""Laws of runs in Python: what a command has in its folder are values."""

import contextlib
import csv
import io
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

import experiments
from experiments.reporting import results as results_lib
from experiments.running import interrupts
from experiments.studies import runs
from experiments.studies import train
from fmtl_jax import evaluation

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test

CASES = ('majority', 'distributed_separate', 'separate_fl')


class RunTest(program_test.ToyTestCase):
  RENDERS = True
  results: runs.Results

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.config = program_test.toy_config()
    cls.config.cases = CASES
    cls.before = cls.config.to_json()
    with (
      contextlib.redirect_stdout(io.StringIO()) as cls.output,
      contextlib.redirect_stderr(io.StringIO()),
    ):
      cls.results = experiments.run(
        cls.config,
        overrides={'run.rounds': 2},
        workdir=pathlib.Path(folder.name, 'run'),
      )

  def test_it_is_that_of_the_command(self):
    self.assertEqual(
      [record['case'] for record in self.results.records], [*CASES]
    )
    self.assertEqual(self.results.records[1]['rounds'], 2)
    self.assertEqual(self.config.to_json(), self.before)
    written = (self.results.workdir / 'results.md').read_text()
    self.assertEqual(self.results.to_markdown(), written)
    self.assertStartsWith(written, self.results._repr_markdown_())
    self.assertFalse(self.results.interrupted)

  def test_tables_are_returned_and_logged_not_printed(self):
    (line,) = self.output.getvalue().splitlines()
    self.assertEqual(line, f'Results go to {self.results.workdir}.')
    log = (self.results.workdir / 'log.txt').read_text()
    self.assertIn('Separate FL', log)

  def test_figures_are_images(self):
    self.assertContainsSubset(['cases', 'clients'], self.results.figures)
    for figure in self.results.figures.values():
      self.assertStartsWith(figure._repr_png_(), b'\x89PNG')

  def test_a_predictor_is_that_of_its_client(self):
    alone = self.results.records[1]
    client, seed = alone['clients'][1], self.results.seeds[0]
    model = self.results.predictor('distributed_separate', client=client)
    self.assertIn(model.task.name, alone['tasks'])
    with self.assertRaisesRegex(ValueError, 'either `task` or `client`'):
      self.results.predictor('separate_fl')
    self.assertEqual(seed, self.config.run.first_seed)

  def test_clients_are_compared_with_training_alone(self):
    transfer = self.results.negative_transfer('distributed_separate')
    self.assertEqual(list(transfer), ['separate_fl'])
    found = self.results.client_differences(
      'separate_fl', 'distributed_separate'
    )
    shape = len(self.results.seeds), len(self.results.clients)
    self.assertEqual(found.shape, shape)
    worse = 100 * (found < 0).sum(1) / (~np.isnan(found)).sum(1)
    np.testing.assert_allclose(transfer['separate_fl'], worse)
    alone, *_, fl = self.results.records[1:]
    np.testing.assert_array_equal(
      found,
      results_lib.client_differences(fl, alone, 'test', evaluation.ACCURACY),
    )
    with self.assertRaisesRegex(ValueError, "a finished case .*, got 'apfl'"):
      self.results.client_differences('apfl', 'separate_fl')

  def test_a_frame_is_the_file_of_all_metrics(self):
    class Frames:
      @staticmethod
      def read_csv(path):
        return list(csv.reader(path.open(encoding='utf-8')))

    with mock.patch.dict(sys.modules, pandas=Frames):
      header, *rows = self.results.to_frame()
    self.assertEqual(tuple(header), runs._COLUMNS)
    self.assertNotEmpty(rows)
    with (
      mock.patch.dict(sys.modules, pandas=None),
      self.assertRaisesRegex(ImportError, 'pip install pandas; .*metrics.csv'),
    ):
      self.results.to_frame()

  def test_ctrl_c_gives_what_is_there(self):
    stop = mock.patch.object(
      train, 'train_and_evaluate', side_effect=interrupts.Interrupted(2)
    )
    folder = self.results.workdir
    with (
      stop,
      contextlib.redirect_stdout(io.StringIO()),
      contextlib.redirect_stderr(io.StringIO()) as told,
    ):
      found = experiments.run(self.config, workdir=folder)
      nothing = experiments.run(self.config, workdir=folder / 'none')
    self.assertTrue(found.interrupted)
    self.assertLen(found.records, 3)
    self.assertIn(f'run(..., workdir={str(folder)!r}) goes on', told.getvalue())
    self.assertEmpty(nothing.tables)
    self.assertIn('interrupted=True', nothing._repr_markdown_())

  def test_a_mistake_is_a_sentence(self):
    with self.assertRaisesRegex(ValueError, 'run.round'):
      experiments.run(self.config, overrides={'run.round': 2})


if __name__ == '__main__':
  absltest.main()
