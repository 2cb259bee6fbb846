"""Keys: agreement (X25519 and HKDF) and sealed messages (ChaCha20-Poly1305).

`cryptography` is an extra; it is imported by the functions that need it.

References:
  Langley et al. (2016), RFC 7748; Krawczyk, Eronen (2010), RFC 5869; Nir,
  Langley (2018), RFC 8439.
"""

import functools
import os
from typing import Any, NamedTuple

from fmtl_jax.secure_aggregation import protocol

KEY_BYTES = protocol.KEY_BYTES
_NONCE_BYTES = protocol.NONCE_BYTES


class RefusedError(ValueError):
  """A client does not do what a message asks for, in one sentence."""


class Library(NamedTuple):
  """Modules of `cryptography`, by their names there."""

  aead: Any
  algorithms: Any
  ciphers: Any
  exceptions: Any
  hashes: Any
  hkdf: Any
  modes: Any
  x25519: Any


@functools.cache
def library() -> Library:
  """Imports what is needed of `cryptography`.

  Raises:
    ValueError: If the package is not installed.
  """
  try:
    from cryptography import exceptions
    from cryptography.hazmat.primitives import ciphers
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import x25519
    from cryptography.hazmat.primitives.ciphers import aead
    from cryptography.hazmat.primitives.ciphers import algorithms
    from cryptography.hazmat.primitives.ciphers import modes
    from cryptography.hazmat.primitives.kdf import hkdf
  except ImportError as error:
    raise ValueError(
      'Expected the package cryptography for secure aggregation and private '
      'alignment, got none; '
      "install it with `pip install 'fmtl_jax[secure]'`."
    ) from error
  return Library(
    aead, algorithms, ciphers, exceptions, hashes, hkdf, modes, x25519
  )


class KeyPair:
  """A pair of X25519 keys.

  Attributes:
    private: 32 bytes.
    public: 32 bytes.
  """

  def __init__(self, private: bytes | None = None):
    """A new pair, or that of a private key."""
    x25519 = library().x25519
    self.private = os.urandom(KEY_BYTES) if private is None else private
    self._key = x25519.X25519PrivateKey.from_private_bytes(self.private)
    self.public: bytes = self._key.public_key().public_bytes_raw()

  def __reduce__(self) -> tuple[Any, ...]:
    """Pickles as its private key."""
    return KeyPair, (self.private,)

  def agree(self, public: bytes, *purposes: bytes) -> tuple[bytes, ...]:
    """Keys of 32 bytes that both owners of two pairs know, and nobody else.

    Args:
      public: Of the other pair.
      *purposes: What each is used for; another purpose gives another key.

    Raises:
      RefusedError: If the public key is none.
    """
    modules = library()
    try:
      other = modules.x25519.X25519PublicKey.from_public_bytes(public)
      shared = self._key.exchange(other)
    except ValueError as error:
      raise RefusedError(
        f'Expected a public key of X25519, got {public.hex()}.'
      ) from error
    hkdf, sha256 = modules.hkdf.HKDF, modules.hashes.SHA256()
    return tuple(
      hkdf(sha256, KEY_BYTES, salt=None, info=purpose).derive(shared)
      for purpose in purposes
    )


def seal(key: bytes, text: bytes, context: bytes) -> bytes:
  """Encrypts a text and authenticates it together with its context.

  Args:
    key: 32 bytes.
    text: The message.
    context: What who opens it must know, as it is: it is not sent.
  """
  nonce = os.urandom(_NONCE_BYTES)
  aead = library().aead.ChaCha20Poly1305(key)
  return nonce + aead.encrypt(nonce, text, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
  """The text of a sealed message.

  Args:
    key: As of `seal`.
    sealed: What `seal` returned.
    context: As of `seal`.

  Raises:
    RefusedError: If anything of it was changed.
  """
  modules = library()
  aead = modules.aead.ChaCha20Poly1305(key)
  try:
    nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    return aead.decrypt(nonce, rest, context)
  except (modules.exceptions.InvalidTag, ValueError) as error:
    raise RefusedError(
      'Expected shares that their sender sealed for this client and run, got '
      'others; they were changed on their way.'
    ) from error
