"""What secure aggregation costs, and Flower's own functions, in one thread.

Both sides make keys, share secrets, mask and unmask the same updates with the
same neighbours, threshold and dropouts, step by step as their clients and
servers do; seconds are of processor time. Flower's side calls the functions of
`flwr.common.secure_aggregation` in the order of its `secaggplus_mod` and
`SecAggPlusWorkflow`, with their defaults (22 bits a number); it needs
`pip install flwr==1.42.0`.
"""

from collections.abc import Iterator
import contextlib
import os
import time
import types
from typing import Any, NamedTuple

import numpy as np

from fmtl_jax import secure_aggregation

CLIP = 1.0


class Setting(NamedTuple):
  """What both sides do.

  Attributes:
    update: `[d]` float32, of all clients.
    members: n.
    neighbours: Of each client.
    threshold: How many holders give a secret back.
    dropped: Those that send no numbers.
  """

  update: np.ndarray
  members: int
  neighbours: int
  threshold: int
  dropped: frozenset[int]


def setting(
  parameters: int, members: int, neighbours: int, threshold: int, dropped: int
) -> Setting:
  """A setting in which those who drop out are far from each other."""
  update = np.random.default_rng(0).normal(size=parameters).astype(np.float32)
  update = secure_aggregation.clipped(update, CLIP)
  gone = frozenset(i * members // dropped for i in range(dropped))
  return Setting(update, members, neighbours, threshold, gone)


class _Clock:
  """Seconds of processor time, by what they were spent on."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    spent = time.process_time() - start
    self.seconds[name] = self.seconds.get(name, 0.0) + spent


def own(case: Setting) -> dict[str, float]:
  """The figures of this package."""
  clock = _Clock()
  point = secure_aggregation.FixedPoint(CLIP, case.members)
  protocol = secure_aggregation.Protocol(case.threshold, case.neighbours)
  size = len(case.update) + 1
  server = secure_aggregation.Server('round 1', protocol, size)
  clients = [
    secure_aggregation.Client(i, case.threshold) for i in range(case.members)
  ]
  with clock('keys'):
    rosters = server.rosters([c.advertise('round 1') for c in clients])
    sent = server.deliveries([c.share(rosters[c.client_id]) for c in clients])
  plain = np.zeros(size, np.uint32)
  num_bytes = 0

  def masked():
    nonlocal num_bytes
    for client in clients:
      if client.client_id not in case.dropped:
        with clock('clients'):
          numbers = point.pack(case.update)
          message = client.mask(sent[client.client_id], numbers)
        np.add(plain, numbers, out=plain)
        num_bytes = len(message.values)
        yield message

  requests = server.requests(masked())
  with clock('server'):
    replies = [clients[i].unmask(requests[i]) for i in requests]
    found = server.unmask(replies)
    mean = point.unpack_mean(found.values)
  if not np.array_equal(found.values, plain):
    raise RuntimeError('The masked sum is not the plain one.')
  return {
    **clock.seconds,
    'bytes_per_parameter': num_bytes / len(case.update),
    'largest_error': float(np.abs(mean - case.update).max()),
  }


def _flower() -> dict[str, Any]:
  """Flower's functions by their names.

  Raises:
    ValueError: If Flower is not installed.
  """
  try:
    from flwr.common.secure_aggregation import ndarrays_arithmetic
    from flwr.common.secure_aggregation import quantization
    from flwr.common.secure_aggregation import secaggplus_utils
    from flwr.common.secure_aggregation.crypto import shamir
    from flwr.common.secure_aggregation.crypto import symmetric_encryption
    from flwr.supercore.primitives import asymmetric
  except ImportError as error:
    raise ValueError(
      'Expected flwr to measure against, got none; install it with `pip '
      'install flwr==1.42.0`.'
    ) from error
  modules = ndarrays_arithmetic, quantization, secaggplus_utils, shamir
  found: dict[str, Any] = {}
  for module in (*modules, symmetric_encryption, asymmetric):
    found |= vars(module)
  return found


class _Flower:
  """Clients and the server of Flower's protocol."""

  target, modulus = 1 << 22, 1 << 32

  def __init__(self, case: Setting):
    self.f = types.SimpleNamespace(**_flower())
    self.case = case
    half = case.neighbours // 2
    self.near = [
      [(i + s) % case.members for s in range(-half, half + 1) if s]
      for i in range(case.members)
    ]
    self.alive = [i for i in range(case.members) if i not in case.dropped]
    self.shapes: list[tuple[int, ...]] = []

  def make_keys(self) -> None:
    """Keys, and shares of them for the neighbours."""
    f, case = self.f, self.case
    everyone = range(case.members)
    self.masks = [f.generate_key_pairs() for _ in everyone]
    seals = [f.generate_key_pairs() for _ in everyone]
    self.seeds = [os.urandom(32) for _ in everyone]
    self.held: list[Any] = []
    self.inbox: list[Any] = [[] for _ in everyone]
    for i, near in enumerate(self.near):
      secrets = self.seeds[i], f.private_key_to_bytes(self.masks[i][0])
      split = [
        f.create_shares(secret, case.threshold, len(near) + 1)
        for secret in secrets
      ]
      self.held.append(split)
      for j, *shares in zip(near, *split, strict=False):
        key = f.generate_shared_key(seals[i][0], seals[j][1])
        text = f.share_keys_plaintext_concat(i, j, *shares)
        self.inbox[j].append((key, f.encrypt(key, text)))

  def masked(self, i: int) -> list[np.ndarray]:
    """What a client sends."""
    f = self.f
    for key, sealed in self.inbox[i]:
      f.share_keys_plaintext_separate(f.decrypt(key, sealed))
    weighted = f.parameters_multiply([self.case.update], 1.0)
    numbers = f.quantize(weighted, CLIP, self.target)
    numbers = f.factor_combine(self.target, numbers)
    self.shapes = f.get_parameters_shape(numbers)
    mask = f.pseudo_rand_gen(self.seeds[i], self.modulus, self.shapes)
    numbers = f.parameters_addition(numbers, mask)
    for j in self.near[i]:
      numbers = self._with_mask(numbers, self.masks[i][0], i, j, i > j)
    return f.parameters_mod(numbers, self.modulus)

  def _with_mask(self, numbers, private, i, j, is_added):
    f = self.f
    key = f.generate_shared_key(private, self.masks[j][1])
    mask = f.pseudo_rand_gen(key, self.modulus, self.shapes)
    add = f.parameters_addition if is_added else f.parameters_subtraction
    return add(numbers, mask)

  def unmasked(self, total: list[np.ndarray]) -> np.ndarray:
    """The mean of the sum of what clients sent."""
    f = self.f
    for i, held in enumerate(self.held):
      few = [shares[: self.case.threshold] for shares in held]
      if i in self.alive:
        seed = f.combine_shares(few[0])
        mask = f.pseudo_rand_gen(seed, self.modulus, self.shapes)
        total = f.parameters_subtraction(total, mask)
        continue
      private = f.bytes_to_private_key(f.combine_shares(few[1]))
      for j in {*self.near[i]} & {*self.alive}:
        total = self._with_mask(total, private, i, j, i > j)
    total = f.parameters_mod(total, self.modulus)
    factor, numbers = f.factor_extract(total)
    sums = f.dequantize(numbers, CLIP, self.target)[0]
    sums -= (len(self.alive) - 1) * CLIP  # Of all shifts it takes one away.
    return sums * (self.target / factor)


def of_flower(case: Setting) -> dict[str, float]:
  """The figures of Flower's functions."""
  clock, flower = _Clock(), _Flower(case)
  with clock('keys'):
    flower.make_keys()
  total: Any = None
  num_bytes = 0
  for i in flower.alive:
    with clock('clients'):
      numbers = flower.masked(i)
    num_bytes = sum(x.nbytes for x in numbers)
    if total is not None:  # Additions are not charged to it: ours are not.
      numbers = flower.f.parameters_addition(total, numbers)
    total = flower.f.parameters_mod(numbers, flower.modulus)
  with clock('server'):
    mean = flower.unmasked(total)
  return {
    **clock.seconds,
    'bytes_per_parameter': num_bytes / len(case.update),
    'largest_error': float(np.abs(mean - case.update).max()),
  }
