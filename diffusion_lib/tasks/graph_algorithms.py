"""Random graphs, and paths in them, a whole batch at a time; adjacencies are (B, N, N) bool."""

import math

import torch


def nearest_neighbours(batch_size: int, nodes: int, degree: float, generator, device) -> torch.Tensor:
    """Draw directed graphs (B, N, N) bool: points uniform in the unit square, each with edges to its nearest others.

    The number of its edges is uniform on 1 .. max(1, floor(N degree)).
    """
    points = torch.rand(batch_size, nodes, 2, generator=generator, device=device)
    most = max(1, math.floor(nodes * degree))
    degrees = torch.randint(1, most + 1, (batch_size, nodes, 1), generator=generator, device=device)
    gaps = (points[:, :, None] - points[:, None]).square().sum(-1)
    gaps.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return gaps <= gaps.sort(-1).values.gather(-1, degrees - 1)


def connected(adjacency: torch.Tensor) -> torch.Tensor:
    """Return where there is a path, (B, N, N) bool, by repeated squaring of the adjacency with its diagonal set."""
    nodes = adjacency.shape[-1]
    reached = (adjacency | torch.eye(nodes, dtype=torch.bool, device=adjacency.device)).float()
    for _ in range(math.ceil(math.log2(max(nodes - 1, 1)))):
        reached = (reached @ reached > 0).float()
    return reached > 0


def distances(adjacency: torch.Tensor, limit: int | None = None) -> torch.Tensor:
    """Count the edges of the shortest path from i to j, (B, N, N) int64; N + 1 where none has at most `limit`."""
    nodes = adjacency.shape[-1]
    edges = adjacency.float()
    frontier = torch.eye(nodes, device=adjacency.device).expand_as(edges)
    result = torch.where(frontier > 0, 0, nodes + 1)
    for length in range(1, (nodes - 1 if limit is None else min(limit, nodes - 1)) + 1):
        new = (frontier @ edges > 0) & (result > length)
        if not new.any():
            break
        result.masked_fill_(new, length)
        frontier = new.float()
    return result
