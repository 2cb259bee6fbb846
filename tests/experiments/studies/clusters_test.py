"""Algorithms that add a layer type, from the config to the record."""

import dataclasses
import pathlib
import sys
import tempfile
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.building import build
from experiments.building import federating
from experiments.configuration import cases
from experiments.studies import models_of_runs
from experiments.studies import train
from fmtl_jax import execution
from fmtl_jax import testing
from fmtl_jax.running import program

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

CONFIG = {
  'cases': ('ifca', 'cfl', 'fedavg'),
  'algorithm.ifca.clusters': 3,
  'algorithm.shared_layers': 1,
  'algorithm.cfl.eps1': 100.0,
  'algorithm.cfl.eps2': 0.0,
  'algorithm.cfl.max_clusters': 2,
  'data.tasks_per_client': 2,
  'run.rounds': 3,
  'run.seeds': 2,
  'report.curve_case': 'ifca',
  'report.baseline': 'fedavg',
}


class ClustersTest(program_test.ToyTestCase):
  RENDERS = True
  workdir: pathlib.Path
  records: dict[str, Any]

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.workdir = pathlib.Path(folder) / 'run'
    cls.records = cls.run_experiment(cls.workdir)

  @classmethod
  def run_experiment(cls, workdir, **fields):
    config = program_test.toy_config(CONFIG | fields)
    train.train_and_evaluate(config, workdir)
    return {
      name: train_test.read_json(workdir / 'cases' / f'{name}.json')
      for name in config.cases
    }

  def test_the_record_has_the_cluster_of_every_client(self):
    shape = (2, program_test.CLIENTS)
    found = np.array(self.records['ifca']['client_values']['cluster'], float)
    self.assertEqual(found.shape, shape)
    seen = set(found[~np.isnan(found)])
    self.assertContainsSubset(seen, {0, 1, 2})
    self.assertNotEmpty(seen)
    found = np.array(self.records['cfl']['client_values']['cluster'])
    self.assertEqual(found.shape, shape)
    for of_run in found:
      self.assertCountEqual(set(of_run), {0, 1})
    self.assertNotIn('cluster', self.records['fedavg']['client_values'])

  def test_the_record_says_who_shared_a_cluster_last(self):
    results = train_test.read_json(self.workdir / 'results.json')
    self.assertNotIn('relations', self.records['fedavg'])
    apart = 1 - np.eye(program_test.CLIENTS)
    for entry, name in zip(results['relations'], ('ifca', 'cfl'), strict=True):
      clusters = self.records[name]['client_values']['cluster']
      of_seed = [np.array(numbers, float) for numbers in clusters]
      expected = [apart * (x[:, None] == x) for x in of_seed]
      found = self.records[name]['relations']['matrices']
      np.testing.assert_array_equal(found, expected)
      self.assertEqual(entry['case'], name)
      np.testing.assert_allclose(entry['mean'], np.mean(expected, 0))
      self.assertLen(entry['owners'], program_test.CLIENTS)
    page = (self.workdir / 'results.html').read_text()
    self.assertIn('Relations between owners', page)
    for name in ('relations.csv', 'relations.png'):
      self.assertTrue((self.workdir / name).exists())

  def test_clients_get_all_models_where_they_choose_one(self):
    # Layers of 3 x 4 + 4 and 4 + 1 values.
    for name, copies, received in (('ifca', 3, 3), ('cfl', 2, 1)):
      cost = self.records[name]['cost']
      self.assertEqual(cost['parameters']['common'], 16)
      self.assertEqual(cost['parameters']['cluster'], copies * 5)
      self.assertEqual(cost['bytes_up_per_client']['cluster'], 5 * 4)
      self.assertEqual(cost['bytes_down_per_client']['cluster'], received * 20)
      self.assertEqual(cost['bytes_down_per_client']['common'], 16 * 4)
    for name, value in self.records['fedavg']['cost'].items():
      if isinstance(value, dict):
        self.assertNotIn('cluster', value, name)

  @parameterized.parameters('ifca', 'cfl')
  def test_a_clients_model_is_as_accurate_as_recorded(self, name):
    source, seed, client, slot = program_test.toy_source(), 1, 4, 1
    config = program_test.toy_config(CONFIG)
    test = federating.federate(source, config.data, seed).partition.test
    recorded = self.records[name]['client_values']['test/accuracy'][seed]
    model = models_of_runs.load(
      self.workdir, name, seed, client=client, slot=slot
    )
    rows = test.groups()[client]
    labels = source.labels[rows, model.task.column]
    found = np.asarray(model.predict(source.features[rows])) == labels
    self.assertAlmostEqual(100 * found.mean(), recorded[client][slot], 3)

  def test_clients_may_be_on_the_host(self):
    with tempfile.TemporaryDirectory() as folder:
      workdir = pathlib.Path(folder) / 'run'
      found = self.run_experiment(
        workdir,
        **{
          'cases': ('ifca',),
          'execution.clients_on': 'host',
          'report.baseline': '',
        },
      )
    for key, values in self.records['ifca']['client_values'].items():
      np.testing.assert_allclose(
        np.array(found['ifca']['client_values'][key], float),
        np.array(values, float),
        rtol=1e-4,
      )

  @parameterized.parameters(
    ('ifca', {}, ''),
    ('cfl', {}, ''),
    ('ifca', {'algorithm.ifca.clusters': 1}, 'algorithm.ifca.clusters=1'),
    ('cfl', {'algorithm.cfl.eps1': 0.0}, 'algorithm.cfl.eps1=0.0'),
    ('cfl', {'algorithm.cfl.gamma': 1.0}, 'algorithm.cfl.gamma=1.0'),
    ('cfl', {'algorithm.cfl.max_clusters': 1}, 'algorithm.cfl.max_clusters=1'),
  )
  def test_settings_that_make_it_fedavg_are_reported(
    self, name, fields, reason
  ):
    config = cases.resolve(name, program_test.toy_config(CONFIG | fields), {})
    case = build.build(name, config, program_test.toy_source(), [0])
    expected = f'{name} is fedavg with {reason}' if reason else ''
    self.assertEqual(case.warning, expected)

  @parameterized.parameters('ifca', 'cfl')
  def test_layers_of_clusters_have_the_settings_of_common_ones(self, name):
    """A server that does not step keeps all of them."""
    fields = {'server.common.learning_rate': 0.0, 'run.seeds': 1}
    config = program_test.toy_config(CONFIG | fields)
    case = build.build(
      name, cases.resolve(name, config, {}), program_test.toy_source(), [0]
    )
    algorithm = case.make_algorithm(case.federation, {})
    run = jax.tree.map(lambda x: x[0], case.runs)
    data = dataclasses.replace(case.data, partition=run.train)

    def two_rounds(key):
      start = algorithm.init(key, data)
      state = algorithm.round(algorithm.round(start, data)[0], data)[0]
      return start.params, state.params, start.round, state.round

    mesh = execution.mesh({program.CLIENT_AXIS: 1}, jax.local_devices())
    before, after, *rounds = testing.jit(
      execution.over_devices(two_rounds, mesh)
    )(run.key)
    testing.assert_trees_equal(after, before)
    self.assertEqual(list(map(int, rounds)), [0, 2])


if __name__ == '__main__':
  absltest.main()
