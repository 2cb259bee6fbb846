"""Certificates of a SuperLink, and keys of its SuperNodes, for one trial.

Connections are encrypted with the certificate of the SuperLink, signed by an
authority that is made here and whose private key nobody keeps. A node proves by
a key on NIST's curve P-384, which Flower asks for, that it is registered.
"""

from collections.abc import Sequence
import datetime
import functools
import ipaddress
import os
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY = 'ca.crt'
CERTIFICATE = 'server.pem'
KEY = 'server.key'
ITSELF = '127.0.0.1'
_LIFE = datetime.timedelta(days=30)
_CLOCKS = datetime.timedelta(days=1)  # By which those of machines may differ.


def write(folder: pathlib.Path, nodes: int, hosts: Sequence[str]) -> None:
  """Writes new certificates and keys.

  Those of the SuperLink are `ca.crt`, `server.pem` and `server.key`, those of a
  node `node_N` and `node_N.pub`. Their owner alone can read private keys.

  Args:
    folder: Of the files, which is there and has none of them.
    nodes: How many there are.
    hosts: Names and addresses by which others call the SuperLink, beside
      127.0.0.1, by which its own processes call it, whatever it listens on.

  Raises:
    FileExistsError: If one of them is there.
  """
  authority, server = _new_key(), _new_key()
  limits = x509.BasicConstraints(ca=True, path_length=0)
  names = x509.SubjectAlternativeName([_host(x) for x in (*hosts, ITSELF)])
  pem = serialization.Encoding.PEM
  for name, key, extension, critical in (
    (AUTHORITY, authority, limits, True),
    (CERTIFICATE, server, names, False),
  ):
    signed = _certificate(name, key, authority, extension, critical)
    _write_new(folder / name, signed.public_bytes(pem), 0o644)
  _write_key(folder / KEY, server, serialization.PrivateFormat.PKCS8)
  for number in range(nodes):
    key, path = _new_key(), folder / f'node_{number}'
    _write_key(path, key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(
      serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write_new(path.with_name(f'{path.name}.pub'), public, 0o644)


def _new_key():
  """A private key."""
  return ec.generate_private_key(ec.SECP384R1())


def _certificate(subject, key, authority, extension, critical):
  """What the authority signs about a key."""
  now = datetime.datetime.now(datetime.UTC)
  return (
    x509.CertificateBuilder()
    .subject_name(_named(subject))
    .issuer_name(_named(AUTHORITY))
    .public_key(key.public_key())
    .serial_number(x509.random_serial_number())
    .not_valid_before(now - _CLOCKS)
    .not_valid_after(now + _LIFE)
    .add_extension(extension, critical)
    .sign(authority, hashes.SHA256())
  )


def _named(name):
  """Who a certificate is about, or of."""
  attribute = x509.NameAttribute(x509.NameOID.COMMON_NAME, name)
  return x509.Name([attribute])


def _host(host):
  """A name or an address, as certificates have them."""
  try:
    return x509.IPAddress(ipaddress.ip_address(host))
  except ValueError:
    return x509.DNSName(host)


def _write_key(path, key, form):
  """Writes a private key that its owner alone can read."""
  content = key.private_bytes(
    serialization.Encoding.PEM, form, serialization.NoEncryption()
  )
  _write_new(path, content, 0o600)


def _write_new(path, content, mode):
  """Writes a file that is not there."""
  opener = functools.partial(os.open, mode=mode)
  with open(path, 'xb', opener=opener) as file:
    file.write(content)
