"""Which of a model's parameters are its head: the layer that turns features into one logit per class."""

from torch import nn


def head_names(net: nn.Module) -> frozenset[str]:
    """The names of the head's parameters; empty if the model does not tell.

    The head is what timm's `pretrained_cfg["classifier"]` names, together with what a method `get_classifier` returns,
    a module or several: of a model with a second head for distillation, timm may name only the first.
    """
    named = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))
    given = net.get_classifier() if hasattr(net, "get_classifier") else ()
    modules = [module for module in (given if isinstance(given, (tuple, list)) else [given])
               if isinstance(module, nn.Module)]
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    return frozenset(name for name, parameter in net.named_parameters()
                     if name.startswith(prefixes) or id(parameter) in own)
