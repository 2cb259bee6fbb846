"""Networks of parties: an encoder of dense layers for each, and a head."""

from collections.abc import Sequence

import jax

from fmtl_jax.federation import parties

from fmtl_jax.models import networks


def party_mlp(
  columns: Sequence[Sequence[int]],
  hidden: Sequence[int],
  embedding: int,
  head: Sequence[int],
  num_outputs: int,
) -> parties.PartyNetwork:
  """Dense encoders with ReLU inside, a linear embedding, and a head of its own.

  The head begins with a ReLU of the embeddings, and has the stages `dense_0`,
  ..., `output`. Without hidden layers of encoders and head, embeddings are a
  block-structured first layer of one network on all columns.

  Args:
    columns: Of the flat features, those of each party, that with labels first.
    hidden: Widths of the hidden layers of every encoder.
    embedding: Width of what a party sends of an example.
    head: Widths of the hidden layers of the head.
    num_outputs: Width of the output layer.

  Raises:
    ValueError: If there are too many parties, or one has no columns.
  """
  parties.check_columns(columns)
  encoders = [networks.mlp((len(own),), hidden, embedding) for own in columns]
  top = networks.mlp((embedding * len(columns),), head, num_outputs)

  def of_head(params, x):
    return top.apply(params, jax.nn.relu(x))

  return parties.of_parts(
    [(model.init, model.apply) for model in encoders],
    (top.init, of_head),
    columns,
  )
