"""Connectivity: which nodes of a graph are joined by a path (IRED, section 4.2), and tasks on pairs in general."""

from typing import ClassVar

import torch

from diffusion_lib.tasks.base import Rules, Task
from diffusion_lib.tasks.corruption import FlippedPairs
from diffusion_lib.tasks.encoding import half_as_large_again, signs
from diffusion_lib.tasks.graph_algorithms import connected, distances, nearest_neighbours
from diffusion_lib.tasks.metrics import classification_rates, confusion, off_diagonal


class PairTask(Task):
    """A task whose solution is a sign for each ordered pair of `size` things, (size, size).

    `size` is `rank`, and half as many again for the harder set. The input's last axis has its channels.
    """

    model = "gnn"
    inp_dim, out_dim = 1, 1
    metrics = (
        "balanced_accuracy",
        "accuracy",
        "balanced_accuracy_off_diagonal",
        "accuracy_off_diagonal",
    )
    higher_is_better = frozenset(metrics)

    def __init__(self, split: str, rank: int | None = None, ood: bool = False):
        super().__init__(split, rank, ood)
        self.size = half_as_large_again(self.rank) if ood else self.rank
        self.inp_shape, self.out_shape = (self.size, self.size, self.inp_dim), (self.size, self.size)

    def score(self, inp, target, prediction):
        """Return the shares of the entries by label and prediction, with the diagonal and without."""
        without = confusion(off_diagonal(target), off_diagonal(prediction), "_off_diagonal")
        return confusion(target, prediction) | without

    def derived(self, means):
        return classification_rates(means) | classification_rates(means, "_off_diagonal")

    def draw(self, axes, inp, target, prediction):
        """Draw the solution's matrix, positive pairs dark, with a cross at each wrong pair."""
        axes.imshow(target.cpu().numpy(), vmin=-1, vmax=3, cmap="Greys")
        rows, columns = ((prediction >= 0) != (target >= 0)).nonzero().T.tolist()
        axes.scatter(columns, rows, marker="x", color="red")
        axes.set(xticks=[], yticks=[], title=f"wrong pairs: {len(rows)} of {target.numel()}")


class Connectivity(PairTask):
    """Whether a path joins i and j, in an undirected graph of near neighbours; a node is connected to itself.

    Input: the adjacency (N, N, 1), solution (N, N), both in signs. `degree` is the release's `p`: see
    nearest_neighbours.
    """

    degree = 0.1
    least_rank, default_rank = 2, 12
    rules = Rules(bound=1.0, candidate_bound=2.0, contrast_weight=0.05, corruption=FlippedPairs())

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        adjacency = nearest_neighbours(batch_size, self.size, self.degree, generator, device)
        adjacency = adjacency | adjacency.mT
        return signs(adjacency, dtype)[..., None], signs(connected(adjacency), dtype)

    def extra_sets(self):
        """Return the release's graphs of 13 to 20 nodes, those that are larger than this task's."""
        return {f"connectivity-{n}": self.of_size(n) for n in (13, 15, 18, 20) if n > self.rank}

    def of_size(self, nodes: int) -> "Connectivity":
        """Return the task on graphs of another size."""
        return type(self)(self.split, nodes)

    def reference_predictions(self, inp, generator):
        """Predict every pair, and the pairs with a path of at most 1, 2, 4 or 6 edges."""
        apart = distances(inp[..., 0] > 0)
        reached = apart <= self.size  # the others count as one more
        near = {f"within {k}": signs(reached & (apart <= k), inp.dtype) for k in (1, 2, 4, 6)}
        return {"all connected": torch.ones_like(inp[..., 0]), **near}


class Connectivity2(Connectivity):
    """Connectivity in denser graphs: at 12 nodes 64% of the pairs are connected instead of 31%.

    The graphs of 20 nodes among its further sets are the release's, which are as sparse as Connectivity's.
    """

    degree = 0.2
    recipe: ClassVar[dict] = {"batch_size": 512}

    def of_size(self, nodes):
        return (Connectivity if nodes == 20 else Connectivity2)(self.split, nodes)
