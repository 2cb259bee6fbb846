"""Rounds: the composition of cohorts, clients and servers.

`algorithm`         the type of an algorithm
`round_settings`    what changes the results of a round, and its placement
`round_phases`      sample, broadcast, train, aggregate, serve
`round_weights`     what clients weigh in a round
`aggregation`       weights, aggregators and servers of all layer types
`server_balancing`  one update of common layers out of those of the tasks
`execution_modes`   how and where the clients of a round are run
`remote_rounds`     rounds whose clients are in other processes
`buffered`          rounds without waiting: a step of the server is one
`streaming`         rounds whose clients live on the host
`client_store`      rows of all clients on the host
`communication`     bytes and parameters of the messages, by layer type
`leaving`           what leaves a client, read off the algorithm
"""

from fmtl_jax.rounds.algorithm import Algorithm
from fmtl_jax.rounds.algorithm import Messages
from fmtl_jax.rounds.client_store import ClientStore
from fmtl_jax.rounds.execution_modes import ExecutionMode
from fmtl_jax.rounds.leaving import Leaving
from fmtl_jax.rounds.leaving import what_leaves
from fmtl_jax.rounds.remote_rounds import RemoteRounds
from fmtl_jax.rounds.round_phases import Grouping
from fmtl_jax.rounds.round_phases import Phases
from fmtl_jax.rounds.round_settings import Placement
from fmtl_jax.rounds.round_settings import RoundSettings
from fmtl_jax.rounds.streaming import StreamedRounds

__all__ = (
  'Algorithm',
  'ClientStore',
  'ExecutionMode',
  'Grouping',
  'Leaving',
  'Messages',
  'Phases',
  'Placement',
  'RemoteRounds',
  'RoundSettings',
  'StreamedRounds',
  'what_leaves',
)
