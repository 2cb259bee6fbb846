"""MTFL: FedAvg with private patches of batch normalization.

A client inserts its own patch of batch normalization into the global network
that it is sent, trains both, and sends back all but the patch. A patch is, by
the setting `private`, the running statistics (mu, sigma), the trained scales
and shifts (gamma, beta), or both. With nothing private it is FedAvg of a
network with batch normalization, with both private FedBN.

The server may step in another way than FedAvg, as in the paper with FedAdam:
see `server.common`; running statistics that are common are plain averages all
the same. Clients that drop out of a round are those of `participation`.

Deviations: FedAvg-Adam, which averages clients' moments, is left out.

References:
  Mills, Hu, Min (2021), Multi-task federated learning for personalised deep
  neural networks in edge computing, https://arxiv.org/abs/2007.09236,
  Algorithm 1 (unchecked).
"""

from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types
from fmtl_jax.algorithms import fedavg

NONE = 'none'
STATISTICS = 'statistics'
SCALE_SHIFT = 'scale_shift'
BOTH = 'both'
# Leaves of modules `norm`, such as `dense_0/norm/scale`.
_PATCHES = {
  NONE: '',
  STATISTICS: 'mean|var',
  SCALE_SHIFT: 'scale|bias',
  BOTH: 'mean|var|scale|bias',
}

label_rules = fedavg.label_rules


def leaf_rules(private: str = SCALE_SHIFT) -> layer_types.Rules:
  """What of batch normalization is personal.

  Args:
    private: `none`, `statistics`, `scale_shift` or `both`.

  Raises:
    ValueError: If `private` is none of these.
  """
  if private not in _PATCHES:
    raise ValueError(
      f'Expected algorithm.mtfl.private to be one of {", ".join(_PATCHES)}, '
      f'got {private!r}.'
    )
  if private == NONE:
    return []
  pattern = f'(.*/)?norm/({_PATCHES[private]})'
  return [(pattern, layer_types.PERSONAL)]


def equals(private: str, federation: federation_lib.Federation) -> str:
  """Why it is a simpler algorithm, '' if it is not."""
  if not federation.has_statistics:
    return (
      'is fedavg: the network trains no batch normalization; set '
      "model.normalization='batch'"
    )
  simpler = {NONE: 'fedavg', BOTH: 'fedbn'}.get(private)
  if simpler is None:
    return ''
  return f"is {simpler} with algorithm.mtfl.private='{private}'"
