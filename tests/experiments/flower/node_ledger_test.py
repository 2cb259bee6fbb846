"""The ledger of a node: what its clients have released, and no more."""

import functools
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from configs import digits
from experiments.building import backbones
from experiments.building import private
from experiments.building import private_examples
from experiments.configuration import config as config_lib
from experiments.flower import node_ledger
from experiments.flower import parts

from tests import needs

ROUNDS = 4
_EXAMPLES = {'privacy.unit': 'example', 'privacy.clipping_norm': 1.0}
_LOCAL = {
  'privacy.unit': 'client',
  'privacy.clipping_norm': 1.0,
  'privacy.noise': 'local',
  'privacy.sampling': 'fixed',
  'aggregation.common': 'uniform',
  'aggregation.task': 'uniform',
}


@functools.cache
def _source():
  return backbones.load_source(digits.get_config('smoke'))


def _built(fields):
  """The config and the case of an experiment with two seeds."""
  config = digits.get_config('smoke')
  config.data.clients = 10
  config.cohort.clients_per_task = 1
  config.run.rounds = ROUNDS
  config.run.evaluate_every = 3
  config.run.seeds = 2
  for field, value in {'privacy.noise_multiplier': 1.0, **fields}.items():
    config_lib.set_field(config, field, value)
  return parts.built('fedavg', config, {}, _source())


@needs.dp_accounting
class LedgerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / 'case' / node_ledger.FILE

  def _charged(self, fields, times, run=1, client=3):
    """What the file says of a client after some messages."""
    config, case = _built(fields)
    for _ in range(times):  # As if the node were started again each time.
      ledger = node_ledger.Ledger(self.path, config, case, run)
      ledger.charge(client)
    found = json.loads(self.path.read_text(encoding='utf-8'))
    return found['clients'][str(client)]

  def test_messages_of_examples_add_up_to_the_epsilon_of_their_silo(self):
    config, case = _built(_EXAMPLES)
    found = self._charged(_EXAMPLES, ROUNDS)
    self.assertEqual(found['messages'], ROUNDS)
    self.assertEqual(found['epsilon_after'], ROUNDS)
    whole = private_examples.ledger(config, case)
    # Silos are as large in both runs.
    self.assertAlmostEqual(found['epsilon'], whole['silos'][3])
    self.path.unlink()
    found = self._charged(_EXAMPLES, 3)
    self.assertBetween(found['epsilon'], 0.1, 0.99 * whole['silos'][3])

  def test_between_evaluations_messages_are_counted_alone(self):
    self.assertEqual(self._charged(_EXAMPLES, 2), {'messages': 2})

  def test_local_noise_is_charged_to_the_client(self):
    config, case = _built(_LOCAL)
    found = self._charged(_LOCAL, 3)
    expected = private.ledger(config, case.federation, 3)['epsilon']
    self.assertAlmostEqual(found['epsilon'], expected)

  def test_central_noise_is_the_servers(self):
    found = self._charged(_LOCAL | {'privacy.noise': 'central'}, 3)
    self.assertEqual(found, {'messages': 3})
    about = json.loads(self.path.read_text(encoding='utf-8'))
    self.assertIn('the server', about['epsilon_is_of'])

  def test_no_client_makes_more_messages_than_its_config_has_rounds(self):
    self._charged(_EXAMPLES, ROUNDS)
    with self.assertRaisesRegex(ValueError, 'at most run.rounds=4 .*client 3'):
      self._charged(_EXAMPLES, 1)
    self._charged(_EXAMPLES, 1, client=4)  # Others do.

  @parameterized.parameters(
    (_EXAMPLES, True),
    (_LOCAL, True),
    ({'privacy.noise_multiplier': 0.0}, False),
  )
  def test_who_has_one(self, fields, expected):
    self.assertEqual(node_ledger.is_private(_built(fields)[0]), expected)


if __name__ == '__main__':
  absltest.main()
