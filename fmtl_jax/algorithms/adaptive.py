"""FedAdagrad, FedAdam, FedYogi: adaptive optimizers at the server.

With Delta_t the mean of the clients' updates in round t, m_{-1} = 0 and
v_{-1} = tau^2, elementwise,

  m_t = beta_1 m_{t-1} + (1 - beta_1) Delta_t
  v_t = v_{t-1} + Delta_t^2                                     (FedAdagrad)
  v_t = v_{t-1} - (1 - beta_2) Delta_t^2 sign(v_{t-1} - Delta_t^2) (FedYogi)
  v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2                    (FedAdam)
  x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau).

There is no correction of the bias of m and v, unlike in `optax.adam`. The paper
asks for v_{-1} >= tau^2; this is the least. beta_1 is 0 for FedAdagrad in its
experiments and 0.9 for the others, beta_2 0.99, tau 0.001 (all unchecked).

Every owner has its own m and v, unchanged in a round without reporting clients.
The learning rates of the settings' server optimizers multiply eta, so that
layer types can differ; 1 leaves it as it is.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`). Server learning rates are starting points, which the paper tunes
for every data set.

References:
  Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan (2021),
  Adaptive federated optimization, https://arxiv.org/abs/2003.00295,
  Algorithm 2 (unchecked).
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

Number = float | jax.Array

label_rules = fedavg.label_rules


class AdaptiveState(NamedTuple):
  """What the server keeps of one owner, in the shape of its parameters.

  Attributes:
    mean: m.
    square: v.
  """

  mean: Any
  square: Any


def scale_by_root(
  square_fn: Callable[[jax.Array, jax.Array], jax.Array],
  learning_rate: Number,
  beta1: Number,
  tau: Number,
) -> optax.GradientTransformation:
  """The server's step of Algorithm 2; the gradients are -Delta.

  Args:
    square_fn: `(v, Delta^2) -> v`.
    learning_rate: eta.
    beta1: Of m.
    tau: The degree of adaptivity: the smaller, the more.
  """

  def init(params):
    return AdaptiveState(
      mean=jax.tree.map(jnp.zeros_like, params),
      square=jax.tree.map(lambda x: jnp.full_like(x, tau**2), params),
    )

  def update(grads, state, unused_params=None):
    mean = jax.tree.map(
      lambda m, grad: beta1 * m - (1 - beta1) * grad, state.mean, grads
    )
    square = jax.tree.map(
      lambda v, grad: square_fn(v, jnp.square(grad)), state.square, grads
    )
    changes = jax.tree.map(
      lambda m, v: learning_rate * m / (jnp.sqrt(v) + tau), mean, square
    )
    return changes, AdaptiveState(mean, square)

  return optax.GradientTransformation(init, update)


def _build(name, federation, local, settings, square_fn, eta, tau, **betas):
  """Builds federated averaging with such steps of the server."""
  [spec] = (spec for spec in SPECS if spec.name == name)
  spec.check(server_learning_rate=eta, tau=tau, **betas)
  server = server_optimizers.instead(
    lambda rate: scale_by_root(square_fn, rate * eta, betas['beta1'], tau),
    federation,
    settings.server,
    name,
  )
  return federated_averaging.federated_averaging(
    federation,
    training.local_sgd(federation, local),
    dataclasses.replace(settings, server=server),
  )


def fedadagrad(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  server_learning_rate: Number = 0.1,
  beta1: Number = 0.0,
  tau: Number = 1e-3,
) -> algorithm_lib.Algorithm:
  """Builds FedAdagrad, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round; of its server optimizers, which have to be
      SGD, the learning rates.
    server_learning_rate: eta; may be traced, as the others.
    beta1: Of m.
    tau: The degree of adaptivity, and the initial root of v.

  Raises:
    ValueError: If a number is out of range, or the settings have another server
      optimizer.
  """
  return _build(
    'fedadagrad',
    federation,
    local,
    settings,
    lambda v, square: v + square,
    server_learning_rate,
    tau,
    beta1=beta1,
  )


def fedadam(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  server_learning_rate: Number = 0.01,
  beta1: Number = 0.9,
  beta2: Number = 0.99,
  tau: Number = 1e-3,
) -> algorithm_lib.Algorithm:
  """Builds FedAdam; arguments as of `fedadagrad`, and beta2 of v."""
  return _build(
    'fedadam',
    federation,
    local,
    settings,
    lambda v, square: beta2 * v + (1 - beta2) * square,
    server_learning_rate,
    tau,
    beta1=beta1,
    beta2=beta2,
  )


def fedyogi(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  server_learning_rate: Number = 0.01,
  beta1: Number = 0.9,
  beta2: Number = 0.99,
  tau: Number = 1e-3,
) -> algorithm_lib.Algorithm:
  """Builds FedYogi; arguments as of `fedadagrad`, and beta2 of v."""
  return _build(
    'fedyogi',
    federation,
    local,
    settings,
    lambda v, square: v - (1 - beta2) * square * jnp.sign(v - square),
    server_learning_rate,
    tau,
    beta1=beta1,
    beta2=beta2,
  )


def _spec(build, label, eta, betas):
  """What one of them says of itself.

  Args:
    build: Its factory.
    label: How tables show it.
    eta: Examples of the server's learning rate.
    betas: Examples of the betas that it has, by name.
  """
  what = {'beta1': 'Of m, the mean of updates.', 'beta2': 'Of v.'}
  return specs.Spec(
    name=build.__name__,
    label=label,
    doc=__doc__,
    family=specs.GLOBAL,
    year=2021,
    build=build,
    epochs_of_examples=specs.local_epochs,
    label_rules=label_rules,
    settings={
      'server_learning_rate': specs.Setting(
        help='eta, times that of the layer type.', least=0, examples=eta
      ),
      **{
        name: specs.Setting(
          help=what[name], least=0, most=1, below=True, examples=examples
        )
        for name, examples in betas.items()
      },
      'tau': specs.Setting(
        help='The degree of adaptivity, and the initial root of v.',
        least=0,
        above=True,
        examples=(0.001, 0.1),
      ),
    },
  )


_BETAS = {'beta1': (0.9, 0.5), 'beta2': (0.99, 0.9)}

SPECS = (
  _spec(fedadagrad, 'FedAdagrad', (0.1, 0.02), {'beta1': (0.0, 0.5)}),
  _spec(fedadam, 'FedAdam', (0.01, 0.05), _BETAS),
  _spec(fedyogi, 'FedYogi', (0.01, 0.05), _BETAS),
)
