"""timm models, and models from functions of the user's own: built, checked, and given weights.

This module gathers what the rest of the code uses.
"""

from kdstudy.trainables.functions import is_function
from kdstudy.trainables.models.building import (
    build,
    chosen_normalisation,
    create,
    create_arguments,
    kind_of,
    normalisation,
)
from kdstudy.trainables.models.checkpoint import part_of
from kdstudy.trainables.models.checks import (
    check,
    check_distillation_head,
    check_normalisation,
    check_recipe,
    check_weights,
    feature_width,
)
from kdstudy.trainables.models.classifier import Classifier, load_weights, save_weights, wants_channels_last
from kdstudy.trainables.models.head import head_names
from kdstudy.trainables.models.normalising import Normalisation, mean_and_std, show_normalisation, usual, with_measured
from kdstudy.trainables.models.pretrained import check_hub, pretrained_weights
from kdstudy.trainables.models.trained import Trained, check_trained, read_trained, read_trained_file

__all__ = [
    "Classifier",
    "Normalisation",
    "Trained",
    "build",
    "check",
    "check_distillation_head",
    "check_hub",
    "check_normalisation",
    "check_recipe",
    "check_trained",
    "check_weights",
    "chosen_normalisation",
    "create",
    "create_arguments",
    "feature_width",
    "head_names",
    "is_function",
    "kind_of",
    "load_weights",
    "mean_and_std",
    "normalisation",
    "part_of",
    "pretrained_weights",
    "read_trained",
    "read_trained_file",
    "save_weights",
    "show_normalisation",
    "usual",
    "wants_channels_last",
    "with_measured",
]
