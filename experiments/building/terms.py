"""Terms: what data and networks of third parties are, and how they can be had.

Licences and terms are those of the publishers' pages; what was not compared
with them is marked (unchecked). Ask them, not this list.
"""

from collections.abc import Mapping
from typing import NamedTuple

_FACES = "needs `pip install 'fmtl_jax[faces]'`"


class About(NamedTuple):
  """A data set or network of a third party.

  Attributes:
    title: What it is.
    terms: Its licence, or under what terms it can be had.
    files: Where its files come from.
    needs: What has to be installed for it; '' for nothing.
  """

  title: str
  terms: str
  files: str
  needs: str = ''


SOURCES: Mapping[str, About] = {
  'digits': About(
    '1,797 handwritten digits of 8 x 8 pixels, five questions about each.',
    'CC BY 4.0 at https://archive.ics.uci.edu/dataset/80 (unchecked).',
    'None to get: scikit-learn brings them.',
  ),
  'uci_har': About(
    'UCI HAR: six activities of thirty people, recorded by a phone.',
    'Its README forbids commercial use; CC BY 4.0 at '
    'https://archive.ics.uci.edu/dataset/240 (unchecked).',
    'Downloaded by itself, or data.manual_dir.',
  ),
  'utkface': About(
    'UTKFace: photographs of faces with age, gender and race.',
    'For research only.',
    'UTKFace.zip of https://susanqq.github.io/UTKFace/ in data.manual_dir.',
    _FACES,
  ),
  'face_folder': About(
    'A folder of photographs of your own, and a CSV of binary attributes.',
    'Those of your photographs.',
    'In data.manual_dir.',
    _FACES,
  ),
  'celeb_a': About(
    'CelebA: photographs of celebrities with attributes and landmarks.',
    'For non-commercial research only.',
    'Files of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, not unpacked, '
    'in data.manual_dir, or prepared by TFDS in data.data_dir.',
    _FACES,
  ),
}
BACKBONES: Mapping[str, About] = {
  'dlib_resnet': About(
    'The face ResNet of dlib: 128 descriptors of a photograph.',
    'Public domain, https://github.com/davisking/dlib-models.',
    'The package face_recognition_models brings them.',
    _FACES,
  ),
  'vgg_face': About(
    'VGG-Face: VGG-16 up to its 4096 descriptors.',
    'For non-commercial research (unchecked).',
    'vgg_face.mat of https://www.robots.ox.ac.uk/~vgg/software/vgg_face/, or '
    'the same weights as .h5, .pth or .safetensors: model.backbone_weights.',
    _FACES,
  ),
}
