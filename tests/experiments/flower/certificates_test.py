"""Certificates and keys of a trial: what they prove, and what is not kept."""

import pathlib
import socket
import ssl
import stat
import tempfile
import threading

from absl.testing import absltest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from experiments.flower import certificates
from tests.experiments import commands


def setUpModule():
  commands.start()


def tearDownModule():
  commands.stop()


class CertificatesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    place = tempfile.TemporaryDirectory()
    self.addCleanup(place.cleanup)
    self.folder = self._written(place.name, 'own')
    self.other = self._written(place.name, 'other')

  def _written(self, place, name):
    folder = pathlib.Path(place) / name
    folder.mkdir()
    certificates.write(folder, 2, ['10.0.0.1', 'server.example.org'])
    return folder

  def _talk(self, authority, host):
    """What a client hears that trusts an authority and calls a host."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(
      self.folder / certificates.CERTIFICATE, self.folder / certificates.KEY
    )
    client = ssl.create_default_context(cafile=authority)
    here, there = socket.socketpair()

    def answer():
      try:
        with server.wrap_socket(there, server_side=True) as connection:
          connection.sendall(b'hello')
      except (OSError, ssl.SSLError):
        there.close()

    thread = threading.Thread(target=answer)
    thread.start()
    self.addCleanup(thread.join)
    with client.wrap_socket(here, server_hostname=host) as connection:
      return connection.recv(5)

  def test_who_trusts_the_authority_believes_the_server_of_its_hosts(self):
    authority = self.folder / certificates.AUTHORITY
    for host in ('10.0.0.1', 'server.example.org', certificates.ITSELF):
      self.assertEqual(self._talk(authority, host), b'hello')

  def test_others_do_not(self):
    for authority, host, reason in (
      (self.folder / certificates.AUTHORITY, '127.0.0.2', 'IP address'),
      (self.folder / certificates.AUTHORITY, 'example.org', 'Hostname'),
      (self.other / certificates.AUTHORITY, '127.0.0.1', 'verify failed'),
      (None, '127.0.0.1', 'verify failed'),
    ):
      with (
        self.subTest(host=host, authority=authority),
        self.assertRaisesRegex(ssl.SSLCertVerificationError, reason),
      ):
        self._talk(authority, host)

  def test_each_node_has_a_key_of_its_own_on_the_curve_of_flower(self):
    found = set()
    for folder in (self.folder, self.other):
      for name in ('node_0', 'node_1'):
        key = serialization.load_ssh_private_key(
          (folder / name).read_bytes(), None
        )
        self.assertIsInstance(key.curve, ec.SECP384R1)
        public = (folder / f'{name}.pub').read_bytes()
        self.assertEqual(
          serialization.load_ssh_public_key(public), key.public_key()
        )
        found.add(public)
    self.assertLen(found, 4)

  def test_private_keys_are_their_owners_and_the_authoritys_is_not_kept(self):
    authority = x509.load_pem_x509_certificate(
      (self.folder / certificates.AUTHORITY).read_bytes()
    )
    secrets = []
    for path in self.folder.iterdir():
      content = path.read_bytes()
      if b'PRIVATE KEY' not in content:
        continue
      self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
      secrets.append(path.name)
      if path.name == certificates.KEY:
        key = serialization.load_pem_private_key(content, None)
      else:
        key = serialization.load_ssh_private_key(content, None)
      self.assertNotEqual(key.public_key(), authority.public_key())
    self.assertCountEqual(secrets, [certificates.KEY, 'node_0', 'node_1'])

  def test_nothing_that_is_there_is_overwritten(self):
    before = {path: path.read_bytes() for path in self.folder.iterdir()}
    with self.assertRaises(FileExistsError):
      certificates.write(self.folder, 2, ['127.0.0.1'])
    self.assertLen(before, 7)
    for path, content in before.items():
      self.assertEqual(path.read_bytes(), content)


class KeysTest(commands.CommandTestCase):
  MODULE = 'flower.keys'

  def test_keys_of_each_node_are_written(self):
    code, output, errors = self.run_command(
      '--output=new/keys', '--hosts=a,10.0.0.1', '--nodes=1'
    )
    self.assertEqual((code, errors), (0, ''))
    self.assertIn('30 days', output)
    self.assertCountEqual(
      [path.name for path in (self.cwd / 'new' / 'keys').iterdir()],
      [
        *(certificates.AUTHORITY, certificates.CERTIFICATE, certificates.KEY),
        *('node_0', 'node_0.pub'),
      ],
    )

  def test_what_is_missing_or_there_is_said(self):
    self.check_mistake('0 hosts and 2 nodes; write', '--output=keys')
    self.check_mistake('no folder', '--hosts=a')
    self.check_mistake('and 0 nodes', '--output=k', '--hosts=a', '--nodes=0')
    (self.cwd / 'keys').mkdir()
    self.check_mistake('keys exists; name', '--output=keys', '--hosts=a')


if __name__ == '__main__':
  absltest.main()
