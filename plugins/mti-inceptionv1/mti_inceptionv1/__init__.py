"""InceptionV1 as TensorFlow had it, the paper's network: importing this registers it with timm."""

from mti_inceptionv1.inceptionv1 import InceptionV1, inceptionv1_tf

__all__ = ["InceptionV1", "inceptionv1_tf"]
