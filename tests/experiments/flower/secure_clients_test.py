"""What clients of a node refuse in secure sums, whatever the server asks."""

from unittest import mock

from absl.testing import absltest
import numpy as np

from experiments.flower import secure_clients
from fmtl_jax import secure_aggregation
from tests import needs

PROTOCOL = secure_aggregation.Protocol(3)
VECTOR = np.arange(5, dtype=np.uint32)


@needs.cryptography
class SecureClientsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.node = secure_clients.SecureClients(7)

  def advertise(self, run, client):
    data = self.node.advertise(run, client, PROTOCOL, VECTOR)
    return secure_aggregation.decode(data)

  def ask(self, stage, messages):
    """Sends a message to each client: what they send, by place."""
    arrays = {
      str(place): np.frombuffer(secure_aggregation.encode(message), np.uint8)
      for place, message in enumerate(messages.values())
    }
    return self.node.answer({'stage': stage, 'of': [*messages]}, arrays)

  def test_a_run_is_taken_part_in_once(self):
    self.advertise('round 1', 4)
    self.advertise('round 1', 5)
    self.node.begin()  # Another round: names stay used.
    with self.assertRaisesRegex(
      ValueError, "client 4 of node 7 .*'round 1' ag"
    ):
      self.advertise('round 1', 4)

  def test_of_another_round_nothing_is_said(self):
    sent = {client: self.advertise('round 1', client) for client in (1, 2, 3)}
    server = secure_aggregation.Server('round 1', PROTOCOL, len(VECTOR))
    rosters = server.rosters(sent.values())
    self.node.begin()
    self.assertEmpty(self.ask(secure_clients.SHARE, rosters))

  def test_fewer_than_its_own_threshold_are_refused(self):
    strict = secure_aggregation.Protocol(4)
    sent = [
      secure_aggregation.decode(
        self.node.advertise('round 1', client, strict, VECTOR)
      )
      for client in (1, 2, 3)
    ]
    server = secure_aggregation.Server('round 1', PROTOCOL, len(VECTOR))
    with self.assertRaisesRegex(ValueError, r'threshold in \[2, 3\], .*got 4'):
      self.ask(secure_clients.SHARE, server.rosters(sent))

  def test_a_run_of_no_group_is_refused(self):
    rounds = mock.Mock()
    rounds.protocols.return_value = [PROTOCOL]
    (found,) = secure_clients.runs_of(rounds, [(0, 'task', 0, 'round 1')])
    self.assertEqual(found, (0, 'task', 0, 'round 1', PROTOCOL))
    for owner in (-1, 1):
      with self.assertRaisesRegex(ValueError, f'task layers, got {owner}'):
        secure_clients.runs_of(rounds, [(0, 'task', owner, 'round 1')])


if __name__ == '__main__':
  absltest.main()
