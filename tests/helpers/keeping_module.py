"""A user's file of helpers, called as ``keeping_module.table(n)``: what it keeps lies in no model's namespace."""

import functools

import torch
from torch import Tensor

CALLS = 0
TABLES: dict[int, Tensor] = {}


def made(n: int) -> Tensor:
    return torch.arange(n).float() / 10


@functools.cache
def cached(n: int) -> Tensor:
    return made(n)


def table(n: int) -> Tensor:
    if n not in TABLES:
        TABLES[n] = made(n)
    return TABLES[n]
