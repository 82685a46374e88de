"""Gram matrices of a batch's features, (samples, features) to (samples, samples), and their centring for HSIC."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 12  # features centred at a time: few enough to stay in the cache for the product


def linear(x: Tensor) -> Tensor:
    """Gram matrix of the features less their mean; all zeros if they are constant up to rounding."""
    n = len(x)
    gram = x.new_zeros(n, n)
    means = x.new_zeros(())
    for part in x.split(_CHUNK, dim=1):
        mean = part.mean(0)
        less_mean = part - mean
        gram.addmm_(less_mean, less_mean.T)
        means = means + mean.square().sum()
    noise = (64 * torch.finfo(x.dtype).eps) ** 2 * (n * means + gram.diagonal().sum())
    # asked this way round, NaN stays NaN
    return torch.where(gram.diagonal().sum() <= noise, 0.0, gram)


def rbf(x: Tensor, bandwidth: float) -> Tensor:
    """Of Gaussian kernels, at a bandwidth in the median distance of two samples."""
    gram = linear(x)
    norms = gram.diagonal()
    sizes = norms[:, None] + norms[None, :]
    squared = sizes - 2 * gram
    # equal samples are 0 apart but for the rounding of what cancels
    squared = torch.where(squared <= 16 * torch.finfo(x.dtype).eps * sizes, 0.0, squared)
    apart = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    sigma = bandwidth * squared[apart].sqrt().median()
    # duplicates may put the median at 0: then only equal samples are alike
    exponent = squared / torch.where(sigma > 0, 2 * sigma.square(), torch.finfo(x.dtype).tiny)
    return torch.where(squared.max() <= 0, 0.0, torch.exp(-exponent))


def centred(gram: Tensor, estimator: str) -> Tensor:
    """Such that the sum over an entrywise product of two is HSIC, up to the estimator's divisor."""
    n = len(gram)
    if estimator == "biased":
        rows = gram.mean(0)
        return gram - rows[:, None] - rows[None, :] + gram.mean()
    gram = gram - torch.diag(gram.diagonal())
    rows = gram.sum(0) / (n - 2)
    found = gram - rows[:, None] - rows[None, :] + gram.sum() / ((n - 1) * (n - 2))
    found = found - torch.diag(found.diagonal())
    # of a site that one sample alone activates nothing is left but rounding, which is no structure to compare
    noise = 64 * torch.finfo(gram.dtype).eps * gram.abs().amax()
    return torch.where(found.abs().amax() <= noise, 0.0, found)
