"""Compression: codecs of what clients send, for each layer type.

`codecs`     the type of a codec, and the leaves of a layer type as one vector
`packing`    numbers of a few bits in words of 32
`eden`       1 to 4 bits a value after a random rotation; unbiased
`qsgd`       stochastic levels in buckets; unbiased
`top_k`      the largest values
`sign`       signs, with one size for each leaf
`power_sgd`  factors of matrices

A codec is a value; with which updates are sent is a setting of rounds
(`RoundSettings.compression`), and clients encode in
`fmtl_jax.clients.compressing`.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any

from fmtl_jax.compression import eden
from fmtl_jax.compression import power_sgd
from fmtl_jax.compression import qsgd
from fmtl_jax.compression import sign
from fmtl_jax.compression import top_k
from fmtl_jax.compression.codecs import Codec
from fmtl_jax.compression.codecs import is_smaller

NONE = 'none'
CODECS: Mapping[str, Callable[..., Codec]] = {
  'eden': eden.eden,
  'qsgd': qsgd.qsgd,
  'top_k': top_k.top_k,
  'sign': sign.sign,
  'power_sgd': power_sgd.power_sgd,
}
NAMES = (NONE, *CODECS)
# The settings of all codecs by name, with their defaults.
SETTINGS: Mapping[str, Any] = {
  name: parameter.default
  for codec in CODECS.values()
  for name, parameter in inspect.signature(codec).parameters.items()
}


def get(
  name: str, field: str = '`compression`', **settings: Any
) -> Codec | None:
  """The codec with a name, None for `none`.

  Args:
    name: One of `NAMES`.
    field: What the error calls it.
    **settings: Of any of them; those that this one does not have are ignored.

  Raises:
    ValueError: If the name is not known, or a setting is out of range.
  """
  if name not in NAMES:
    raise ValueError(
      f'Expected {field} to be one of {", ".join(NAMES)}, got {name!r}.'
    )
  if name == NONE:
    return None
  own = inspect.signature(CODECS[name]).parameters
  return CODECS[name](**{k: v for k, v in settings.items() if k in own})


__all__ = (
  'CODECS',
  'Codec',
  'NAMES',
  'NONE',
  'SETTINGS',
  'get',
  'is_smaller',
)
