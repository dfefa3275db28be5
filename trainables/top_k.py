"""Of a model's logits, the k largest and one number for all others, so that a million images of a thousand classes fit.

Kept are the k largest logits, their classes, and r: what each of the others would be if they were all alike and their
exponentials had the same sum,

    r = log(sum of exp(z_j) over the others) - log(C - k).

At temperature 1 the probabilities of the kept classes are then exact, and the rest is spread evenly, as TinyViT stores
its teacher (Wu et al. 2022, arXiv:2207.10666). At higher temperatures the others get a little more than their due,
since the exponentials of equal logits then have the largest sum. With k = C - 1 nothing is lost.
"""

import math

import torch

from kdstudy.trainables.settings import MOST_CLASSES


def pack(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Pack logits (..., C), with k < C <= 65536, to (..., 2k + 1) int16: k classes, their logits, and r, which are fp16
    seen as int16. Raises ValueError for more classes."""
    if logits.shape[-1] > MOST_CLASSES:
        raise ValueError(f"views.top_k works with at most {MOST_CLASSES} classes; remove it")
    logits = logits.float()
    values, classes = logits.topk(k, dim=-1)
    others = logits.scatter(-1, classes, -math.inf)
    rest = others.logsumexp(-1, keepdim=True) - math.log(logits.shape[-1] - k)
    return torch.cat([classes.to(torch.int16), torch.cat([values, rest], -1).half().view(torch.int16)], -1)


def unpack(packed: torch.Tensor, classes: int) -> torch.Tensor:
    """The logits (..., C) in fp16 of what `pack` returned, (..., 2k + 1) int16."""
    k = packed.shape[-1] // 2
    numbers, values = packed[..., :k].long() & 0xFFFF, packed[..., k:].contiguous().view(torch.float16)
    rest = values[..., k:].expand(*packed.shape[:-1], classes)
    return rest.clone().scatter_(-1, numbers, values[..., :k])


def truncate(logits: torch.Tensor, k: int) -> torch.Tensor:
    """What is left of logits (..., C) once they were packed, in fp16."""
    return unpack(pack(logits, k), logits.shape[-1])
