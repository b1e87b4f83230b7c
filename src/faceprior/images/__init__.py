"""Pictures in and out: any file that Pillow reads becomes upright RGB; results are written atomically.

Tensors are RGB float32 in [-1, 1], shape (3, H, W) for one image and (B, 3, H, W) for a batch.
"""

from faceprior.images.limits import MAX_PIXELS, MIN_SIDE
from faceprior.images.metadata import METADATA_KEY, read_metadata
from faceprior.images.picture import IMAGE_SUFFIXES, SUFFIXES, Picture, format_of
from faceprior.images.reading import decode_picture, read_file, read_image, read_picture, to_rgb
from faceprior.images.samples import spread_under
from faceprior.images.tensors import resize, square, to_pil, to_tensor, to_uint8
from faceprior.images.tone import Tone, tone_of
from faceprior.images.writing import FORMATS, encode_picture, encode_png, replaced, write_file, write_png

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "METADATA_KEY",
    "MIN_SIDE",
    "SUFFIXES",
    "Picture",
    "Tone",
    "decode_picture",
    "encode_picture",
    "encode_png",
    "format_of",
    "read_file",
    "read_image",
    "read_metadata",
    "read_picture",
    "replaced",
    "resize",
    "spread_under",
    "square",
    "to_pil",
    "to_rgb",
    "to_tensor",
    "to_uint8",
    "tone_of",
    "write_file",
    "write_png",
]
