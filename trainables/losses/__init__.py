"""The losses. `total` has the whole loss of a batch, whose soft part is one of those listed here, each in its own file.

A new one is one file and one name in `LOSSES`; its parameters then are settings of `[default]` and `[search]`. Only
`total` imports torch.
"""

import difflib
from typing import Any

from kdstudy.trainables.functions import is_function
from kdstudy.trainables.losses import dist, dkd, features, hard, hinton, logit_std, mse, token, ttm
from kdstudy.trainables.losses.own import check_own, own_loss
from kdstudy.trainables.losses.soft import FEATURES, LOGITS, TEMPERATURE, TOKEN, Parameter, SoftLoss

LOSSES: dict[str, SoftLoss] = {loss.name: loss for loss in (
    hinton.LOSS, hard.LOSS, mse.LOSS, logit_std.LOSS, dkd.LOSS, dist.LOSS, ttm.LOSS, features.LOSS, token.HARD,
    token.SOFT)}
USUAL = hinton.LOSS.name  # the loss of trials whose parameters name none
# The parameters of all losses, each once.
PARAMETERS: dict[str, Parameter] = {one.name: one for loss in LOSSES.values() for one in loss.parameters}


def find(name: str) -> SoftLoss:
    """The loss of that name. Raises ValueError for a function that may not be called or cannot be imported."""
    return LOSSES[name] if name in LOSSES else own_loss(name)


def parameters_of(name: str) -> tuple[str, ...]:
    """The names of a loss's parameters. A function of the user's own takes the temperature."""
    return tuple(one.name for one in LOSSES[name].parameters) if name in LOSSES else (TEMPERATURE.name,)


def what_reads(name: str) -> str:
    """What a loss reads of student and teacher: LOGITS, as a function of the user's own does, FEATURES or TOKEN."""
    return LOSSES[name].reads if name in LOSSES else LOGITS


def active(parameters: dict[str, Any]) -> dict[str, Any]:
    """A run's parameters without those that its loss does not have."""
    used = parameters_of(parameters.get("loss", USUAL))
    return {name: value for name, value in parameters.items() if name not in PARAMETERS or name in used}


def check_name(name: str) -> str:
    """Return the name. Raises ValueError if it is neither that of a loss nor of a function."""
    if name not in LOSSES and not is_function(name):
        nearest = difflib.get_close_matches(name, LOSSES, n=1, cutoff=0.6)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"must be one of {', '.join(LOSSES)}, or a function of your own, "
                         f"package.module:function{hint}")
    return name


__all__ = ["FEATURES", "LOGITS", "LOSSES", "PARAMETERS", "TEMPERATURE", "TOKEN", "USUAL", "Parameter", "SoftLoss",
           "active", "check_name", "check_own", "find", "parameters_of", "what_reads"]
