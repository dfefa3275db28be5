"""A student whose training goes wrong where a file tells it to. Copied beside a study, as a user's own model would be.

The files lie in `orders`, each named WHAT-SEED for the trial with that seed, WHAT-once for whichever trial comes first,
or WHAT-always. die-once kills the worker that builds the next model.
"""

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

ORDERS = Path(__file__).parent / "orders"
MOST_MEMORY = 8 * 2**30  # bytes; where nobody ends the trial before, it goes on as if nothing had happened
SLOW = 0.01  # seconds a step


def build(**arguments) -> torch.nn.Module:
    if Path("/proc/self/cmdline").read_bytes().startswith(b"ray::") and _first("die"):
        os.kill(os.getpid(), signal.SIGKILL)  # a worker, before its trial has begun
    net = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=2,
                            mlp_ratio=2, global_pool="avg", class_token=False, **arguments)
    net.register_forward_hook(functools.partial(_obey, torch.initial_seed()))
    return net


def _obey(seed: int, net: torch.nn.Module, images: tuple, logits: torch.Tensor) -> torch.Tensor:
    if not net.training or not torch.is_grad_enabled():
        return logits
    for what, act in ACTS.items():
        if (ORDERS / f"{what}-{seed}").exists() or (ORDERS / f"{what}-always").exists() or _first(what):
            logits = act(logits)
    return logits


def _first(what: str) -> bool:
    try:
        (ORDERS / f"{what}-once").unlink()
    except FileNotFoundError:
        return False
    return True


def _raise(logits: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("told to")


def _kill(logits: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return logits


def _allocate(logits: torch.Tensor) -> torch.Tensor:
    held, chunk = [], 2**27
    while len(held) * chunk < MOST_MEMORY:
        held.append(torch.ones(chunk, dtype=torch.uint8))
        time.sleep(0.1)
    return logits


def _sleep(logits: torch.Tensor) -> torch.Tensor:
    time.sleep(SLOW)
    return logits


ACTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "slow": _sleep,
    "raise": _raise,
    "allocate": _allocate,
    "kill": _kill,
    "nan": lambda logits: logits * float("nan"),
    "inf": lambda logits: logits + 1e38 * logits.detach().sign(),  # finite gradients, but an epoch's sum that is not
}
