"""Networks for federations; any `(init, apply)` pair works as well."""

from fmtl_jax.models.base import from_nnx as from_nnx
from fmtl_jax.models.base import Model as Model
from fmtl_jax.models.base import sequential as sequential
from fmtl_jax.models.networks import cnn as cnn
from fmtl_jax.models.networks import mlp as mlp
from fmtl_jax.models.vgg import vgg_face as vgg_face
from fmtl_jax.models.weight_files import load_vgg as load_vgg
