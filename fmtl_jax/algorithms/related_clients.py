"""Clients whose copies the server relates: what algorithms of them share.

Copies of layers of the type `client` are at the server, one for each client.
What the server makes of them, and whom it relates by that, is the algorithm's.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers
from fmtl_jax.server import servers

Tree = Any


def client_copies(layers: Sequence[str]) -> layer_types.Rules:
  """Every layer has a copy for each client, at the server.

  Args:
    layers: The network's layers in the order of their use.
  """
  return layer_types.by_depth(layers, [(layer_types.CLIENT, len(layers))])


def has(federation: federation_lib.Federation, name: str) -> bool:
  """Whether a federation has layers of a type."""
  return name in jax.tree.leaves(federation.layer_types)


UNRELATED = specs.Degenerate(
  "relates no clients without layers of the type 'client'",
  where=lambda federation: not has(federation, layer_types.CLIENT),
)


def with_servers(
  settings: round_settings.RoundSettings,
  make: Mapping[str, Callable[[servers.Server], servers.Server]],
) -> round_settings.RoundSettings:
  """The settings, with servers of some layer types around those asked for.

  Args:
    settings: Of the round.
    make: By layer type, the algorithm's server, given the one of the settings,
      which steps for each owner by default.
  """
  asked = settings.server
  default = server_optimizers.ServerOptimizer()
  new = {
    name: wrap(server_optimizers.of(asked.get(name, default)))
    for name, wrap in make.items()
  }
  return dataclasses.replace(settings, server={**asked, **new})


def memory(state: algorithm_lib.State, name: str) -> Any:
  """The state of the server of a layer type."""
  return state.server[name].optimizer
