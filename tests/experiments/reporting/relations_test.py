"""Laws of relations in reports: files, names, stability, order."""

import csv
import json
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.folders import records as records_lib
from experiments.reporting import relations

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.reporting import drawn_figures
from tests.experiments.reporting import toy_records

# Two groups of clients, 0 and 2, and 1 and 3; 3 is a little like 0.
MEAN = np.array(
  [[0, 0, 2, 0.5], [0, 0, 0, 3], [2, 0, 0, 0], [0.5, 3, 0, 0]], float
)
NOISE = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
SEEDS = np.stack([MEAN + 0.25 * NOISE, MEAN - 0.25 * NOISE])


def _record(of_seeds, workdir, case='fedu', tasks=('odd',), held=None):
  count = of_seeds.shape[-1]
  record = toy_records.last(
    case,
    *([90.0] * len(of_seeds)),
    clients=[str(7 + number) for number in range(count)],
    client_tasks=held or [[0]] * count,
  )
  record['tasks'] = list(tasks)
  return record | relations.kept(of_seeds, workdir, case)


class RelationsTest(drawn_figures.DrawnTestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )

  def test_the_first_process_alone_writes(self):
    """Another one may not have the folder, nor place for it."""
    missing = self.workdir / 'missing'
    with mock.patch.object(relations.processes, 'is_first', lambda: False):
      record = _record(SEEDS, missing)
    self.assertEqual(record['relations']['matrices'], SEEDS.tolist())
    self.assertFalse(missing.exists())

  def test_results_have_the_mean_and_how_stable_it_is(self):
    record = _record(SEEDS, self.workdir)
    self.assertEqual(record['relations']['matrices'], SEEDS.tolist())
    np.testing.assert_array_equal(
      np.load(self.workdir / 'relations' / 'fedu.npy'), SEEDS
    )
    (entry,) = relations.build([record, toy_records.last('a', 1.0)], '')
    off = ~np.eye(4, dtype=bool)
    expected = np.corrcoef(SEEDS[0][off], SEEDS[1][off])[0, 1]
    self.assertAlmostEqual(entry.pop('stability'), expected)
    self.assertEqual(
      entry,
      {
        'case': 'fedu',
        'owners': ['7', '8', '9', '10'],
        'seeds': [0, 1],
        'mean': MEAN.tolist(),
      },
    )
    json.dumps(entry, allow_nan=False)

  @parameterized.parameters(1, 3)
  def test_stability_needs_seeds_that_differ_somewhere(self, count):
    same = np.stack([MEAN] * count)
    found = relations.stability(same)
    self.assertTrue(np.isnan(found) if count == 1 else found > 1 - 1e-9)
    self.assertTrue(np.isnan(relations.stability(np.ones((2, 4, 4)))))

  def test_numbers_of_float32_are_short_and_undefined_ones_none(self):
    of_seeds = np.array([[[0, 0.1], [np.nan, 0]]], np.float32)
    kept = relations.kept(of_seeds, self.workdir, 'a')['relations']['matrices']
    self.assertEqual(kept, [[[0.0, 0.1], [None, 0.0]]])
    self.assertEqual(relations.kept(None, self.workdir, 'a'), {})

  def test_many_owners_have_a_file(self):
    count = relations.MOST_OWNERS + 1
    of_seeds = np.zeros((2, count, count), np.float32)
    of_seeds[:, 0, 1] = (0.5, 1.5)
    record = _record(of_seeds, self.workdir)
    self.assertEqual(record['relations'], {'file': 'relations/fedu.npy'})
    found = np.load(self.workdir / 'relations/fedu.npy')
    np.testing.assert_array_equal(found, of_seeds)
    entries = relations.build([record], self.workdir)
    self.assertEqual(entries[0]['file'], 'relations/fedu.npy')
    self.assertNotIn('mean', entries[0])
    notes = relations.table(entries, [record]).notes
    self.assertIn('201 owners are in relations/fedu.npy', notes[-1])
    relations.write_csv(self.workdir / 'r.csv', [record], self.workdir)
    self.assertFalse((self.workdir / 'r.csv').exists())
    (self.workdir / 'relations/fedu.npy').unlink()
    with self.assertRaisesRegex(ValueError, r'damaged.*cases/fedu\.json'):
      relations.build([record], self.workdir)

  @parameterized.parameters(
    (('a', 'b'), [[0], [1]], ['a', 'b']),
    (('b', 'a'), [[1], [0]], ['a', 'b']),
    (('a', 'b'), [[0], [0]], ['7 a', '8 a']),
    (('a', 'b'), [[0, 1], [1, 2]], ['7 a+b', '8 b']),
    (('a',), [[0], [0]], ['7', '8']),
  )
  def test_clients_are_named_by_tasks(self, tasks, held, expected):
    record = _record(np.zeros((1, 2, 2)), self.workdir, 'a', tasks, held)
    self.assertEqual(relations.owners(record, 2), expected)

  def test_tasks_may_be_related_too(self):
    record = _record(np.zeros((1, 4, 4)), self.workdir, 'a', ('a', 'b'))
    self.assertEqual(relations.owners(record, 2), ['a', 'b'])
    self.assertEqual(relations.owners(record, 3), ['0', '1', '2'])

  def test_a_line_is_a_pair(self):
    path = self.workdir / 'relations.csv'
    relations.write_csv(path, [_record(SEEDS, self.workdir)], self.workdir)
    with path.open(newline='') as file:
      rows = {(r['owner'], r['other']): r for r in csv.DictReader(file)}
    self.assertLen(rows, 12)
    found = rows['8', '7']
    self.assertAlmostEqual(float(found['mean']), 0)
    self.assertAlmostEqual(float(found['std']), np.std([0.25, -0.25], ddof=1))

  def test_the_table_says_who_is_most_alike(self):
    records = [
      _record(SEEDS, self.workdir),
      _record(np.array([MEAN > 0.5] * 2), self.workdir, 'cfl'),
    ]
    table = relations.table(relations.build(records, ''), records)
    pairs = toy_records.cells(table, 'strongest pair')
    self.assertEqual(pairs, {'Fedu': '8, 10: 3', 'Cfl': '2 pairs: 1'})
    stable = toy_records.cells(table, 'stability')
    self.assertEqual(stable['Cfl'], '+1.00')
    alone = [_record(SEEDS[:1], self.workdir)]
    table = relations.table(relations.build(alone, ''), alone)
    self.assertEqual(toy_records.cells(table, 'stability'), {'Fedu': '–'})

  def test_those_who_are_alike_are_together(self):
    place = relations.order(MEAN).tolist()
    self.assertIn(place, ([2, 0, 3, 1], [1, 3, 0, 2]))
    for flat in (np.ones((4, 4)), np.zeros((1, 1)), MEAN[:2, :2]):
      self.assertEqual(relations.order(flat).tolist(), [*range(len(flat))])

  def test_clusters_are_relations(self):
    found = relations.of_clusters([[0, 1, 0, None], [1, 1, 2, 2]])
    expected = np.zeros((2, 4, 4))
    for seed, i, j in ((0, 0, 2), (1, 0, 1), (1, 2, 3)):
      expected[seed, i, j] = expected[seed, j, i] = 1
    np.testing.assert_array_equal(found, expected)
    self.assertIsNone(relations.of_clusters(None))

  def test_a_figure_has_a_panel_for_each_case_with_ordered_names(self):
    signed = _record(SEEDS - 1, self.workdir, 'mocha')
    figure = self.drawn(
      relations.heat_maps,
      [_record(SEEDS, self.workdir), toy_records.last('a', 1.0), signed],
      self.workdir,
    )
    first, second = figure.axes[:2]
    names = [label.get_text() for label in first.get_yticklabels()]
    self.assertIn(names, (['9', '7', '10', '8'], ['8', '10', '7', '9']))
    (image,) = first.get_images()
    shown = np.ma.filled(image.get_array(), np.nan)
    self.assertTrue(np.isnan(np.diag(shown)).all())
    self.assertEqual(np.nanmax(shown), 3)
    self.assertEqual(image.get_clim(), (0, 3))
    self.assertEqual(second.get_images()[0].get_clim(), (-2, 2))
    self.check_nothing_overlaps(figure)

  def test_without_relations_there_is_no_figure(self):
    records = [toy_records.last('a', 1.0)]
    self.assertFalse(relations.heat_maps(self.path, records, self.workdir))
    broken = _record(np.full((2, 3, 3), np.nan), self.workdir)
    self.assertFalse(relations.heat_maps(self.path, [broken], self.workdir))

  @parameterized.parameters(
    {'matrices': [[[0, 1], [1, 0]]]},  # Of one seed.
    {'matrices': [[[0, 1]], [[1, 0]]]},
    {'matrices': [[['x', 1], [1, 0]]] * 2},
    {'file': 3},
  )
  def test_damaged_ones_are_reported(self, **damaged):
    record = _record(SEEDS, self.workdir) | {'train_loss': [[1.0] * 2] * 10}
    records_lib.check_case(record)
    with self.assertRaises(ValueError):
      records_lib.check_case(record | {'relations': damaged})


if __name__ == '__main__':
  absltest.main()
