"""Batches in an order that a seed and an epoch give, and augmentation of batches of images.

Batches are for updating; cross-validation is for evaluating, and scikit-learn has it. An augmentation takes its random
numbers only from the generator that it is given.
"""

from fusedstep.data.color import color_jitter
from fusedstep.data.crop import random_crop
from fusedstep.data.flip import random_flip
from fusedstep.data.mixing import mixup, one_hot
from fusedstep.data.order import Batches, batches
from fusedstep.data.patches import cutout

__all__ = ["Batches", "batches", "color_jitter", "cutout", "mixup", "one_hot", "random_crop", "random_flip"]
