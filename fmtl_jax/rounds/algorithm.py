"""The type of an algorithm, and what algorithms share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.data import dataset as dataset_lib

Tree = Any
Metrics = dict[str, jax.Array]
State = federation_lib.FederationState


class Messages(NamedTuple):
  """The messages of one client, with all of its slots, in a round: shapes.

  Each tree has the structure of a view, None where nothing is moved; a leaf's
  place may hold a tree, which is sent for all leaves of its layer type that
  have None (`ClientUpdate.message`). How many examples a client has, its
  metrics and its choices are not in them.

  Attributes:
    up: The client message: its update, and what is averaged beside it.
    down: The server broadcast: its view, and what the server's rule sends.
    all_copies: The layer types of which it is sent the copies of all owners.
  """

  up: tuple[Tree, ...]
  down: tuple[Tree, ...]
  all_copies: tuple[str, ...] = ()


class EachExample(NamedTuple):
  """Messages that are sent for each training example: shapes.

  Attributes:
    messages: Of one example, as `Messages` of a client.
    times: How often each is sent in a round, such as its epochs; expected.
  """

  messages: Messages
  times: float


class Algorithm(NamedTuple):
  """An algorithm: pure functions that close over its settings.

  Attributes:
    init: `(key, data) -> state`; the key is consumed.
    round: `(state, data, frozen) -> (state, metrics)`. `frozen` is the
      federation's by default. Metrics are those of the cohort's clients:
      `client` (M for padding) and `steps`, `[C]`; `finite`, `[C]` by layer
      type, see `faults.finite`; `task` (T for an inactive slot),
      `loss_sum` and `count` (of examples, over all steps), `[C, S]`. Where
      asked for, `skipped` and `simulated_seconds`, `[C]`; `measured`, `[]` by
      name, what an algorithm measures of the whole federation after the round.
    view: `(state, data, client, frozen) -> view`: the parameters with which a
      client (a `Cohort` without the leading axis) predicts.
    personal: Whether views differ between the clients of a task.
    form: `data -> (execution, reasons)`: the execution mode of rounds and, by
      path, why a kernel is trained in factored form or not; if another mode was
      asked for, by its name, why it is not taken.
    messages: `() -> Messages`, of a round.
    state_version: Of the meaning of a state; one that was saved with another
      version is not resumed.
    matmul_precision: That of its settings, for evaluations and predictions.
    client_axis: That of its placement: over which clients are spread.
    relations: `state -> [N, N]`, how the models of N owners of a layer type (of
      clients, of tasks) are related in this state, as far as the algorithm
      learns or is given it: row k holds the weights of the others for owner k.
      None where an algorithm relates none.
    adapt: `(view, frozen, local_data, epochs) -> view`: how a held-out client
      adapts, of which `epochs` may be traced; None for local SGD.
    each_example: `data -> EachExample`: what is sent beside the `messages`, for
      each example that a client has; None for nothing.
    remote: The same round with clients that are elsewhere, a
      `remote_rounds.RemoteRounds`, or why they cannot be (`whose ...`); see
      `remote_rounds.of`.
  """

  init: Callable[[jax.Array, dataset_lib.FederatedDataset], State]
  round: Callable[..., tuple[State, Metrics]]
  view: Callable[..., Tree]
  personal: bool
  form: Callable[[dataset_lib.FederatedDataset], tuple[str, dict[str, str]]]
  messages: Callable[[], Messages]
  state_version: int = 1
  matmul_precision: str | None = precision.HIGHEST
  client_axis: str | None = None
  relations: Callable[[State], jax.Array] | None = None
  adapt: Callable[..., Tree] | None = None
  each_example: Callable[..., EachExample] | None = None
  remote: Any = None
