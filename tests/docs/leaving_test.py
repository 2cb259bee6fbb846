"""The table of what leaves a client says what algorithms are."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from docs.making import algorithm_pages
from docs.making import leaving_pages
from fmtl_jax import algorithms
from fmtl_jax import rounds


def _leaving(name):
  spec = algorithms.ALGORITHMS[name]
  federation, _ = algorithm_pages.small_federation(spec, normalization='batch')
  data = algorithm_pages.small_data(spec)
  return rounds.what_leaves(federation, spec.build(federation), data)


class LeavingTest(parameterized.TestCase):
  def test_personal_layers_stay(self):
    found = {name: _leaving(name) for name in ('isolated', 'fedper', 'fedbn')}
    self.assertEqual(found['isolated'].updates, {})
    self.assertEqual(list(found['fedper'].updates), ['common'])
    self.assertGreater(found['fedper'].statistics, 0)
    self.assertEqual(found['fedbn'].statistics, 0)

  def test_what_is_sent_beside_updates(self):
    scaffold = _leaving('scaffold')
    self.assertEqual(scaffold.report, sum(scaffold.updates.values()))
    self.assertEqual(scaffold.comes, scaffold.report)
    self.assertGreater(_leaving('fednova').report, 0)

  def test_choices_and_copies(self):
    ifca = _leaving('ifca')
    self.assertEqual(ifca.choices, ('cluster',))
    self.assertEqual(ifca.all_copies, ('cluster',))
    self.assertEqual(_leaving('fedamp').copies, ('client',))
    self.assertEqual(_leaving('fedavg').choices, ())

  def test_every_algorithm_has_a_row(self):
    short = lambda spec: (spec.label, *[''] * 6)
    refusal = lambda spec: 'Expected X.' if spec.name == 'ifca' else ''
    with (
      mock.patch.object(leaving_pages, 'row', short),
      mock.patch.object(leaving_pages, 'refusal', refusal),
    ):
      page = leaving_pages.pages()[leaving_pages.NAME]
    for spec in algorithms.ALGORITHMS.values():
      self.assertIn(f'| {spec.label} |', page)
    self.assertIn('| [IFCA](algorithms/ifca.md) | Expected X. |', page)

  @parameterized.parameters(
    ('fedavg', ''),
    ('fedper', ''),
    ('isolated', ''),
    ('ifca', 'other clusters'),
    ('cfl', 'other clusters'),
    ('scaffold', 'Expected `privacy` without'),
    ('fednova', 'more than an update'),
    ('feddyn', 'both sums drift apart'),
    ('fedamp', 'a copy for each client'),
  )
  def test_what_is_refused_with_privacy_says_so(self, name, words):
    found = leaving_pages.refusal(algorithms.ALGORITHMS[name])
    self.assertIn(words, found)
    self.assertEqual(bool(words), bool(found))


if __name__ == '__main__':
  absltest.main()
