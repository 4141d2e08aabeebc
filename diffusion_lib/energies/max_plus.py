"""Products of matrices in which max stands for the sum and + for the product.

A layer of pairs whose outputs are pooled over a node, max_k s(a_ij + b_ik + c_jk) with s increasing, needs of all its
triples (i, j, k) only max_k (b_ik + c_jk). This page computes that, and its derivatives of any order, by a loop over
k: no tensor has all triples, and what the loop works on stays in the processor's cache.
"""

import torch
from torch.autograd import Function


def max_plus(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """out[b, r, s] = max_k (left[b, r, k] + right[b, s, k]), channel by channel.

    left (B, R, K, H), right (B, S, K, H) to (B, R, S, H). Differentiable to any order; entries that tie for the
    maximum share its gradient, so that the order of the k does not matter. Entries may be -inf.
    """
    return _MaxPlus.apply(left, right)


def _sums(left, right):
    """left[:, :, k] + right[:, :, k] (B, R, S, H) for each k, in one tensor that is used again."""
    out = None
    for k in range(left.shape[2]):
        out = torch.add(left[:, :, None, k], right[:, None, :, k], out=out)
        yield k, out


class _MaxPlus(Function):
    @staticmethod
    def forward(ctx, left, right):
        best = None
        for _, total in _sums(left, right):
            best = total.clone() if best is None else torch.maximum(best, total, out=best)
        if any(ctx.needs_input_grad):
            ties = torch.zeros_like(best)
            for _, total in _sums(left, right):
                ties += total == best
            ctx.save_for_backward(left, right, best, ties)
        return best

    @staticmethod
    def backward(ctx, gradient):
        left, right, best, ties = ctx.saved_tensors
        return _Spread.apply(gradient, left.detach(), right.detach(), best.detach(), ties)


class _Spread(Function):
    """To each left[r, k] and right[s, k] its share of the gradients (B, R, S, H) of the maxima that it is part of."""

    @staticmethod
    def forward(ctx, gradient, left, right, best, ties):
        ctx.save_for_backward(left, right, best, ties)
        to_left, to_right = torch.zeros_like(left), torch.zeros_like(right)
        share, nothing = gradient / ties, gradient.new_zeros(())
        for k, total in _sums(left, right):
            shares = torch.where(total == best, share, nothing)
            to_left[:, :, k] = shares.sum(2)
            to_right[:, :, k] = shares.sum(1)
        return to_left, to_right

    @staticmethod
    def backward(ctx, of_left, of_right):
        return _Gather.apply(of_left, of_right, *ctx.saved_tensors), None, None, None, None


class _Gather(Function):
    """The transpose of _Spread: the mean of of_left[r, k] + of_right[s, k] over the k that tie for a maximum."""

    @staticmethod
    def forward(ctx, of_left, of_right, left, right, best, ties):
        ctx.save_for_backward(left, right, best, ties)
        out, nothing = torch.zeros_like(best), best.new_zeros(())
        for (_, total), (_, value) in zip(_sums(left, right), _sums(of_left, of_right), strict=True):
            out += torch.where(total == best, value, nothing)
        return out / ties

    @staticmethod
    def backward(ctx, gradient):
        return *_Spread.apply(gradient, *ctx.saved_tensors), None, None, None, None
