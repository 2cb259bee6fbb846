"""Networks for federations; any `(init, apply)` pair works as well."""

from fmtl_jax.federation.adapters import merge_adapters
from fmtl_jax.models.adapters import Adapters
from fmtl_jax.models.base import from_nnx
from fmtl_jax.models.base import Model
from fmtl_jax.models.base import sequential
from fmtl_jax.models.language import gru
from fmtl_jax.models.language import lstm
from fmtl_jax.models.language import transformer
from fmtl_jax.models.multi_modal import multi_modal
from fmtl_jax.models.networks import cnn
from fmtl_jax.models.networks import linear
from fmtl_jax.models.networks import mlp
from fmtl_jax.models.party_networks import party_mlp
from fmtl_jax.models.vgg import vgg_face
from fmtl_jax.models.weight_files import load_vgg

__all__ = (
  'Adapters',
  'Model',
  'cnn',
  'from_nnx',
  'gru',
  'linear',
  'load_vgg',
  'lstm',
  'merge_adapters',
  'mlp',
  'multi_modal',
  'party_mlp',
  'sequential',
  'transformer',
  'vgg_face',
)
