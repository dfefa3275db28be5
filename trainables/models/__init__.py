"""timm models, and models from functions of the user's own: built, checked, and given weights.

This module gathers what the rest of the code uses.
"""

from kdstudy.trainables.functions import is_function
from kdstudy.trainables.models.building import build, create, create_arguments, kind_of, normalisation
from kdstudy.trainables.models.checks import check, check_normalisation, check_recipe, check_weights
from kdstudy.trainables.models.classifier import Classifier, load_weights, save_weights, wants_channels_last
from kdstudy.trainables.models.head import head_names
from kdstudy.trainables.models.pretrained import check_hub, pretrained_weights
from kdstudy.trainables.models.trained import Trained, check_trained, read_trained

__all__ = [
    "Classifier",
    "Trained",
    "build",
    "check",
    "check_hub",
    "check_normalisation",
    "check_recipe",
    "check_trained",
    "check_weights",
    "create",
    "create_arguments",
    "head_names",
    "is_function",
    "kind_of",
    "load_weights",
    "normalisation",
    "pretrained_weights",
    "read_trained",
    "save_weights",
    "wants_channels_last",
]
