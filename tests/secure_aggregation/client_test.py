"""Clients: what they refuse, whoever asks for it."""

import dataclasses
import pickle

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.secure_aggregation import client as client_lib
from fmtl_jax.secure_aggregation import keys
from fmtl_jax.secure_aggregation import messages
from fmtl_jax.secure_aggregation import protocol
from fmtl_jax.secure_aggregation import server as server_lib

from tests import needs

VALUES = np.arange(7, dtype=np.uint32)
CLIENTS, THRESHOLD = 5, 3


def _run(until, name='r', clients=None, without=()):
  """Clients in a run, and what each is sent next."""
  clients = clients or [client_lib.Client(i, THRESHOLD) for i in range(CLIENTS)]
  server = server_lib.Server(name, protocol.Protocol(THRESHOLD), len(VALUES))
  sent = server.rosters([c.advertise(name) for c in clients])
  if until != 'share':
    sent = server.deliveries([c.share(sent[c.client_id]) for c in clients])
  if until == 'unmask':
    left = [c for c in clients if c.client_id not in without]
    sent = server.requests([c.mask(sent[c.client_id], VALUES) for c in left])
  return clients, sent


@needs.cryptography
class RosterTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'clients': (1, 2, 3, 3)}, 'different neighbours'),
    ({'clients': (0, 1, 2, 3)}, 'different neighbours'),
    ({'clients': (1, 2, 3, -1)}, 'different neighbours'),
    ({'seal_keys': (b'a' * 32,) * 4}, 'public keys'),
    ({'seal_keys': ()}, 'public keys'),
    ({'seal_keys': (b'a', b'b', b'c', b'd')}, 'public key of X25519'),
    ({'clients': (), 'seal_keys': (), 'mask_keys': ()}, 'more than half'),
    ({'run': 'another'}, 'got one of'),
  )
  def test_what_is_wrong_is_refused(self, wrong, message):
    clients, sent = _run('share')
    with self.assertRaisesRegex(keys.RefusedError, message):
      clients[0].share(dataclasses.replace(sent[0], **wrong))
    clients[0].share(sent[0])

  def test_a_threshold_that_is_no_majority_is_refused(self):
    clients, sent = _run('share')
    clients[0].threshold = 2
    with self.assertRaisesRegex(keys.RefusedError, 'more than half'):
      clients[0].share(sent[0])


@needs.cryptography
class DeliveryTest(parameterized.TestCase):
  def test_too_few_are_refused(self):
    clients, sent = _run('mask')
    few = messages.Delivery('r', sent[0].senders[:1], sent[0].sealed[:1])
    with self.assertRaisesRegex(keys.RefusedError, 'at least 3 clients'):
      clients[0].mask(few, VALUES)
    clients[0].mask(sent[0], VALUES)

  @parameterized.parameters((1, 2, 3, 9), (1, 1, 2, 3), (0, 1, 2, 3))
  def test_strangers_and_doubles_are_refused(self, *senders):
    clients, sent = _run('mask')
    wrong = dataclasses.replace(sent[0], senders=senders)
    with self.assertRaisesRegex(keys.RefusedError, 'each once'):
      clients[0].mask(wrong, VALUES)

  def test_shares_of_another_sender_are_refused(self):
    clients, sent = _run('mask')
    swapped = sent[0].sealed[::-1]
    with self.assertRaisesRegex(keys.RefusedError, 'changed on their way'):
      clients[0].mask(dataclasses.replace(sent[0], sealed=swapped), VALUES)


@needs.cryptography
class UnmaskTest(parameterized.TestCase):
  @parameterized.parameters(
    ((0, 1, 2, 3), (3, 4), r'\[3\] as both'),
    ((0, 1, 2, 3, 3), (4,), 'listed once'),
    ((0, 1, 2, 3), (), 'listed once'),
    ((0, 1, 2, 3, 9), (4,), 'listed once'),
    ((0, 1), (2, 3, 4), 'at least 3 clients .* in the sum, got 2'),
    ((1, 2, 3), (0, 4), 'sent its numbers'),
  )
  def test_inconsistent_requests_are_refused(self, alive, dropped, message):
    clients, sent = _run('unmask', without=(4,))
    self.assertEqual(sent[0].dropped, (4,))
    with self.assertRaisesRegex(keys.RefusedError, message):
      clients[0].unmask(messages.UnmaskRequest('r', alive, dropped))
    self.assertLen(clients[0].unmask(sent[0]).shares, CLIENTS)

  def test_a_client_never_shows_both_secrets(self):
    """Once unmasked, no other request of the run is answered."""
    clients, sent = _run('unmask')
    clients[0].unmask(sent[0])
    for request in (sent[0], messages.UnmaskRequest('r', (0, 1, 2), (3, 4))):
      with self.assertRaisesRegex(keys.RefusedError, 'unmasked once'):
        clients[0].unmask(request)

  def test_runs_are_not_repeated(self):
    clients, _ = _run('unmask')
    with self.assertRaisesRegex(keys.RefusedError, "'r' again"):
      clients[0].advertise('r')
    _, sent = _run('unmask', 'next', clients)
    clients[0].unmask(sent[0])

  def test_steps_are_in_order(self):
    clients, sent = _run('mask')
    with self.assertRaisesRegex(keys.RefusedError, 'next step'):
      clients[0].unmask(messages.UnmaskRequest('r', (0, 1, 2, 3, 4), ()))
    clients[0].mask(sent[0], VALUES)
    with self.assertRaisesRegex(keys.RefusedError, 'each is done once'):
      clients[0].mask(sent[0], VALUES + np.uint32(1))


@needs.cryptography
class KeptTest(absltest.TestCase):
  def test_a_client_goes_on_after_it_was_pickled(self):
    clients, sent = _run('mask')
    copy = pickle.loads(pickle.dumps(clients[0]))
    self.assertEqual(
      copy.mask(sent[0], VALUES), clients[0].mask(sent[0], VALUES)
    )


if __name__ == '__main__':
  absltest.main()
