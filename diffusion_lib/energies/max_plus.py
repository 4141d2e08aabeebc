"""Products of matrices with max in place of the sum and + in place of the product.

A layer of pairs that pools over a node, max_k s(a_ij + b_ik + c_jk) with s increasing, needs only max_k (b_ik + c_jk)
of its triples (i, j, k). Here that and its derivatives of any order are computed by a loop over k: no tensor holds all
triples, and what the loop works on stays in the processor's cache.
"""

import torch
from torch.autograd import Function

CACHED = 2**18  # sums of one k at a time on a CPU; with 2.5 times as many it took up to twice as long


def max_plus(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return out[b, r, s] = max_k (left[b, r, k] + right[b, s, k]), channel by channel.

    left (B, R, K, H), right (B, S, K, H) to (B, R, S, H). Differentiable to any order; entries that tie for the maximum
    share its gradient, so the order of the k does not matter. Entries may be -inf.
    """
    return _MaxPlus.apply(left, right)


class _MaxPlus(Function):
    @staticmethod
    def forward(ctx, left, right):
        (best,) = _by_rows(_maximum, left, right)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(left, right, best, *_by_rows(_ties, left, right, best))
        return best

    @staticmethod
    def backward(ctx, gradient):
        left, right, best, ties = ctx.saved_tensors
        return _Spread.apply(gradient, left.detach(), right.detach(), best.detach(), ties)


class _Spread(Function):
    """Give each left[r, k] and right[s, k] its share of the gradients (B, R, S, H) of the maxima that it is part of."""

    @staticmethod
    def forward(ctx, gradient, *found):
        ctx.save_for_backward(*found)
        return _by_rows(_spread, *found, gradient)

    @staticmethod
    def backward(ctx, of_left, of_right):
        return _Gather.apply(of_left, of_right, *ctx.saved_tensors), None, None, None, None


class _Gather(Function):
    """The transpose of _Spread: the mean of of_left[r, k] + of_right[s, k] over the k that tie for a maximum."""

    @staticmethod
    def forward(ctx, of_left, of_right, *found):
        ctx.save_for_backward(*found)
        return _by_rows(_gather, *found, of_left, of_right)[0]

    @staticmethod
    def backward(ctx, gradient):
        return *_Spread.apply(gradient, *ctx.saved_tensors), None, None, None, None


def _by_rows(function, left, right, *others) -> tuple[torch.Tensor, ...]:
    """Join the results of `function` for some rows b at a time, on a CPU as many as its cache has room for."""
    rows = len(left)
    if left.device.type == "cpu":
        rows = max(1, CACHED // max(1, left.shape[1] * right.shape[1] * left.shape[3]))
    parts = [function(*some) for some in zip(*(every.split(rows) for every in (left, right, *others)), strict=True)]
    return tuple(torch.cat(results) if len(results) > 1 else results[0] for results in zip(*parts, strict=True))


def _sums(left, right):
    """left[:, :, k] + right[:, :, k] (B, R, S, H) for each k, in one tensor that is used again."""
    out = None
    for k in range(left.shape[2]):
        out = torch.add(left[:, :, None, k], right[:, None, :, k], out=out)
        yield out


def _is_best(left, right, best):
    """1 where the sum at k is the maximum, else 0, for each k, in one tensor that is used again."""
    return (total.eq_(best) for total in _sums(left, right))


def _maximum(left, right):
    sums = _sums(left, right)
    best = next(sums).clone()
    for total in sums:
        torch.maximum(best, total, out=best)
    return (best,)


def _ties(left, right, best):
    """How many k have the maximum."""
    ties = torch.zeros_like(best)
    for chosen in _is_best(left, right, best):
        ties += chosen
    return (ties,)


def _spread(left, right, best, ties, gradient):
    to_left, to_right, share = torch.empty_like(left), torch.empty_like(right), gradient / ties
    for k, chosen in enumerate(_is_best(left, right, best)):
        chosen *= share
        to_left[:, :, k] = chosen.sum(2)
        to_right[:, :, k] = chosen.sum(1)
    return to_left, to_right


def _gather(left, right, best, ties, of_left, of_right):
    out = torch.zeros_like(best)
    for chosen, value in zip(_is_best(left, right, best), _sums(of_left, of_right), strict=True):
        out.addcmul_(chosen, value)
    return (out / ties,)
