"""The server: what it does not take."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.secure_aggregation import client as client_lib
from fmtl_jax.secure_aggregation import protocol
from fmtl_jax.secure_aggregation import server as server_lib

from tests import needs

VALUES = np.arange(7, dtype=np.uint32)


def _started(stage):
  clients = [client_lib.Client(i, 3) for i in range(4)]
  server = server_lib.Server('r', protocol.Protocol(3), len(VALUES))
  found = [c.advertise('r') for c in clients]
  if stage == 'advertise':
    return server, found
  sent = server.rosters(found)
  found = [c.share(sent[c.client_id]) for c in clients]
  sent = server.deliveries(found)
  masked = [c.mask(sent[c.client_id], VALUES) for c in clients]
  if stage == 'mask':
    return server, masked
  sent = server.requests(masked[:3])
  return server, [c.unmask(sent[c.client_id]) for c in clients[:3]]


@needs.cryptography
class MessagesTest(parameterized.TestCase):
  def test_too_few_end_the_run(self):
    server, found = _started('advertise')
    with self.assertRaisesRegex(ValueError, "at least 3 .*'r'.*got 2"):
      server.rosters(found[:2])
    server, found = _started('mask')
    with self.assertRaisesRegex(ValueError, "after 'mask'.*under another"):
      server.requests(found[:2])
    server, found = _started('unmask')
    with self.assertRaisesRegex(ValueError, "after 'unmask'"):
      server.unmask(found[:2])

  def test_messages_of_others_are_refused(self):
    server, found = _started('advertise')
    other = dataclasses.replace(found[0], run='other')
    for wrong in ([*found, found[0]], [*found[1:], other]):
      with self.assertRaisesRegex(ValueError, 'one Advertisement of each'):
        server.rosters(wrong)

  def test_numbers_of_another_size_are_refused(self):
    server, found = _started('mask')
    short = dataclasses.replace(found[0], values=found[0].values[4:])
    with self.assertRaisesRegex(ValueError, '28 bytes of masked numbers'):
      server.requests([short, *found[1:]])

  def test_changed_shares_of_a_dropped_client_are_noticed(self):
    server, found = _started('unmask')
    shares = found[0].shares
    wrong = dataclasses.replace(found[0], shares=(*shares[:3], b'\0' * 33))
    with self.assertRaisesRegex(ValueError, 'changed on their way'):
      server.unmask([wrong, *found[1:]])


if __name__ == '__main__':
  absltest.main()
