"""Costs: the time that a client's kernels take in a step of local SGD.

A kernel `[d, h]` that every client has for itself is read in both passes and
written with its gradient: 5 d h numbers move, unless a core keeps it in its
cache. In factored form (see `low_rank`) K clients that run at once read the
kernel that they share twice, and each of them its n rows `[n, d + h]`; in
exchange there are four small products with these rows. Both are seconds by the
ceilings of a device, of which small products reach a part. What else a step
does is the same in both forms, but for what no longer fits into a cache where
clients run at once.
"""

from typing import NamedTuple

import jax

_NUMBER = 4  # Bytes; as if all parameters were float32.
_ORDINARY_MOVES = 5
_SHARED_READS = 2
# Of the rate of large products, what those with the rows of a few steps reach:
# measured on a CPU (37 to 56 of 165 GFLOP/s) and, by where factored kernels no
# longer pay, on an H200.
_SMALL = 0.25
# A kernel is factored where this share of its time is enough: what is gained
# beyond has to make up for what is not counted.
_WORTHWHILE = 0.75
# On a CPU, bytes of a kernel that stays in a core's own cache, and of a step's
# values that stay in its share of the common one. What does not is moved three
# times: written, and read in both passes.
_CACHE = {'cpu': 2**20}
_ROOM = {'cpu': 2**22}
_VALUE_MOVES = 3


class Ceilings(NamedTuple):
  """What a device is capable of.

  Attributes:
    flops_per_second: Operations of large products.
    bytes_per_second: Bytes read and written by a copy of a large array.
  """

  flops_per_second: float
  bytes_per_second: float


# Measured by `experiments.benchmarks.rounds --workload=ceilings`: two cores of
# an EPYC with AVX-512, an H200 with products in float32. A TPU was not
# measured, and has the ratio of the CPU.
_CEILINGS = {
  'cpu': Ceilings(1.65e11, 7.9e9),
  'gpu': Ceilings(5.0e13, 3.4e12),
}


def ceilings(platform: str = '') -> Ceilings:
  """Those of a platform's device that was measured.

  Args:
    platform: `cpu`, `gpu` or `tpu`; by default that of JAX.
  """
  return _CEILINGS.get(platform or jax.default_backend(), _CEILINGS['cpu'])


class Rows(NamedTuple):
  """The rows of factored kernels.

  Attributes:
    batch_size: B, of a step.
    number: n, of all steps of a round.
    together: K, the clients that run at once.
  """

  batch_size: int
  number: int
  together: float


def ordinary(
  shape: tuple[int, int], device: Ceilings, together: float = 1
) -> float:
  """Seconds of a step for a kernel `[d, h]` of its own, but for products.

  Args:
    shape: d and h.
    device: Its ceilings.
    together: K, the clients that run at once, each with its own.
  """
  size = _NUMBER * shape[0] * shape[1]
  if together * size <= _CACHE.get(jax.default_backend(), 0):
    return 0.0
  return _ORDINARY_MOVES * size / device.bytes_per_second


def factored(shape: tuple[int, int], rows: Rows, device: Ceilings) -> float:
  """The same for a kernel in factored form.

  Args:
    shape: d and h.
    rows: Of the client.
    device: Its ceilings.
  """
  numbers = rows.number * sum(shape)
  moved = _SHARED_READS * (shape[0] * shape[1] / rows.together + numbers)
  flops = 4 * rows.batch_size * numbers
  return _NUMBER * moved / device.bytes_per_second + flops / (
    _SMALL * device.flops_per_second
  )


def pays(shape: tuple[int, int], rows: Rows, device: Ceilings) -> bool:
  """Whether a kernel is better factored.

  Args:
    shape: d and h.
    rows: Of the client.
    device: Its ceilings.
  """
  least = _WORTHWHILE * ordinary(shape, device)
  return factored(shape, rows, device) < least


def spilled(value_bytes: float, together: float, device: Ceilings) -> float:
  """Seconds of a step for values that a CPU's cache does not hold any more.

  Args:
    value_bytes: Operands and results of products of one client's step.
    together: K.
    device: Its ceilings.
  """
  room = _ROOM.get(jax.default_backend())
  if room is None or together == 1 or together * value_bytes <= room:
    return 0.0
  return _VALUE_MOVES * value_bytes / device.bytes_per_second
