"""Batches in an order that a seed and an epoch give, and augmentation of batches of images.

A batch is about how to update; cross-validation is about how to evaluate, and scikit-learn has it. An augmentation
takes its random numbers from a generator that is given to it, and from nowhere else.
"""

from fusedstep.data.color import color_jitter
from fusedstep.data.crop import random_crop
from fusedstep.data.flip import random_flip
from fusedstep.data.mixing import mixup, one_hot
from fusedstep.data.order import Batches, batches
from fusedstep.data.patches import cutout

__all__ = ["Batches", "batches", "color_jitter", "cutout", "mixup", "one_hot", "random_crop", "random_flip"]
