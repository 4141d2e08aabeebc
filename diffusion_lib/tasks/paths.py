"""Planning: a shortest path from a start to a goal in a directed graph of near neighbours (IRED, section 4.3)."""

from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

import torch
from einops import rearrange, repeat

from diffusion_lib.seeds import seeded_generator
from diffusion_lib.tasks.base import Rules, Task
from diffusion_lib.tasks.corruption import ChangedStep
from diffusion_lib.tasks.encoding import one_hot_signs, signs
from diffusion_lib.tasks.graph_algorithms import distances, nearest_neighbours
from diffusion_lib.tasks.metrics import path_scores, ratio, reaches_goal

GRAPHS_AT_ONCE = 2048
DEGREE = 0.5
LONGEST = 6  # edges of the longest path


def plan_weights(target: torch.Tensor) -> torch.Tensor:
    """Return the weights of a plan's squared errors: 10 for its nodes, 0.5 for all other entries."""
    return torch.where(target > 0, 10.0, 0.5)


class PathTask(Task):
    """A shortest path in a graph of `size` nodes: `rank`, and 5 more for the harder set.

    The path's length is uniform on path_lengths(size), as in the release's published data: one longer than its code
    means. Graphs with such a path are rare, so drawing a batch of them takes no fixed time. Instead a pool of
    `pool_size` examples is drawn at first use, the same for every run, and batches are drawn from it.

    Scores: see metrics.path_scores and `execute`. `success_over_chance` says how far `first_step_shortens` is above a
    random successor, as a share of what is possible.
    """

    least_rank, default_rank = 8, 20
    plan_steps: ClassVar[int]
    axes: ClassVar[int]  # of a step: 1 where it names nodes, 2 where edges
    pool_size: ClassVar[dict[str, int]] = {"train": 90_000, "val": 10_000, "test": 10_000}
    metrics = (
        "first_step_shortens",
        "success_over_chance",
        "plan_success",
        "closed_loop_success",
        "first_action_accuracy",
        "first_action_feasibility",
        "argmax_accuracy",
    )
    higher_is_better = frozenset(metrics)
    beyond_shares = frozenset({"success_over_chance"})

    def __init__(self, split: str, rank: int | None = None, ood: bool = False):
        super().__init__(split, rank, ood)
        self.size = self.rank + 5 if ood else self.rank
        self.inp_shape = (self.size, self.size, self.inp_dim)
        self.out_shape = (self.plan_steps, *[self.size] * self.axes, self.out_dim)

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        pool = path_pool(self.size, self.split, self.pool_size[self.split], str(device))
        rows = torch.randint(len(pool[0]), (batch_size,), generator=generator, device=device)
        return self.encode(*(part[rows] for part in pool), dtype)

    def encode(self, adjacency, start, path, dtype):
        """Encode graphs (B, N, N) bool, starts (B,) and paths (B, LONGEST), nodes after the start: input, solution."""
        raise NotImplementedError

    def nodes(self, plan):
        """Return the nodes that plans (B, *out_shape) move to, (B, plan_steps)."""
        raise NotImplementedError

    def score(self, inp, target, prediction):
        label = self.nodes(target)
        plan = self.nodes(prediction)
        return path_scores(inp[..., 0] > 0, start_node(inp), self.goal(target), label, plan)

    def goal(self, target):
        """Return the last node of the label, (B,)."""
        raise NotImplementedError

    def execute(self, inp, target, prediction, plan=None):
        """Score `closed_loop_success`: taking a plan's first step and planning anew, a walk reaches the goal.

        It has `plan_steps` steps, and a step that is no edge ends it. Nearer to the goal than any problem of the task
        the last plan is followed on, since no training has its first step lead to the goal. A place has one plan,
        however often a walk comes by, and none is made where the steps left are too few.
        plan: makes the new plans; None: the first one is followed throughout.
        """
        adjacency, start, goal = inp[..., 0] > 0, start_node(inp), self.goal(target)
        rows = torch.arange(len(inp), device=inp.device)
        to_goal = distances(adjacency)[rows, :, goal]
        shortest, _ = path_lengths(self.size)
        steps, following = self.nodes(prediction), torch.zeros_like(start)  # each plan, and which of its steps is next
        place, walk, lost = start, [], torch.zeros_like(start, dtype=torch.bool)
        plans, planned = steps[:, None].repeat(1, self.size, 1), rows_of(start, self.size)[..., 0]
        for left in reversed(range(self.plan_steps)):
            walk.append(steps[rows, following])
            lost = lost | ~adjacency[rows, place, walk[-1]]
            place, following = walk[-1], following + 1
            distance = to_goal[rows, place]
            anew = ~lost & (shortest <= distance) & (distance <= left)
            if plan is None or not anew.any():
                continue
            unknown = (anew & ~planned[rows, place]).nonzero()[:, 0]
            if len(unknown):
                moved, at = inp[unknown].clone(), place[unknown]
                moved[..., 1] = signs(rows_of(at, self.size), inp.dtype)
                plans[unknown, at], planned[unknown, at] = self.nodes(plan(moved, unknown)), True
            steps, following = torch.where(anew[:, None], plans[rows, place], steps), following.where(~anew, 0)
        return {"closed_loop_success": reaches_goal(adjacency, start, goal, torch.stack(walk, 1)).double()}

    def derived(self, means):
        return {"success_over_chance": ratio(means["first_step_shortens"] - means["chance"], 1 - means["chance"])}

    def reference_predictions(self, inp, generator):
        """Return a random walk; its first step, a random successor of the start, is the published metric's floor."""
        adjacency, node = (inp[..., 0] > 0).float(), start_node(inp)
        rows, walk = torch.arange(len(inp), device=inp.device), []
        for _ in range(self.plan_steps):
            following = torch.multinomial(adjacency[rows, node], 1, generator=generator)[:, 0]
            walk.append((node, following))
            node = following
        before, after = (torch.stack(part, 1) for part in zip(*walk, strict=True))
        return {"random walk": self.encode_plan(before, after, inp)}

    def encode_plan(self, before, after, inp):
        """Encode moves from nodes to nodes, both (B, plan_steps), as a solution (B, *out_shape)."""
        raise NotImplementedError

    def draw(self, axes, inp, target, prediction):
        """Draw the graph's nodes on a circle, its edges light, the plan bold: green along edges, else red."""
        edges, start = inp[..., 0].cpu() > 0, start_node(inp[None]).item()
        goal, plan = self.goal(target[None]).item(), self.nodes(prediction[None])[0].tolist()
        turn = torch.arange(self.size) * 2 * torch.pi / self.size
        place = torch.stack([turn.cos(), turn.sin()], 1).tolist()

        def line(one, other, **style):
            axes.annotate("", place[other], place[one], arrowprops={"arrowstyle": "->", **style})

        for one, other in edges.nonzero().tolist():
            line(one, other, color="lightgrey")
        for one, other in zip([start, *plan], plan, strict=False):
            if one == goal:
                break
            line(one, other, color="green" if edges[one, other] else "red", linewidth=2.5)
        for node, (x, y) in enumerate(place):
            colour = {start: "tab:blue", goal: "tab:orange"}.get(node, "black")
            axes.text(1.12 * x, 1.12 * y, str(node), color=colour, ha="center", va="center")
        there = reaches_goal(edges[None], *torch.tensor([[start], [goal]]), torch.tensor([plan])).item()
        title = f"from {start} to {goal}, {'reached' if there else 'not reached'}"
        axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal", title=title)
        axes.axis("off")


class ShortestPath1D(PathTask):
    """A path whose plan names the node of each step. Input (N, N, 4), solution (8, N, 1), in signs.

    Channels of the input: edge from i to j, i is the start, the first again, i is the goal. Step k of the solution is a
    one-hot of the node moved to; after the goal it stays there.
    """

    model = "gnn-conv-1d-v2"
    plan_steps, axes = 8, 1
    inp_dim, out_dim = 4, 1
    rules = Rules(bound=1.0, candidate_bound=2.0, entry_weights=plan_weights, corruption=ChangedStep(0))
    released_rules = replace(rules, level_bound=0.1)
    recipe: ClassVar[dict] = {"batch_size": 512}

    def encode(self, adjacency, start, path, dtype):
        path = padded(path, self.plan_steps)
        starts, goals = (rows_of(node, self.size) for node in (start, path[:, -1]))
        inp = signs(torch.stack([adjacency, starts, adjacency, goals], -1), dtype)
        return inp, self.encode_plan(None, path, inp)

    def encode_plan(self, before, after, inp):
        return one_hot_signs(after, self.size, inp.dtype)[..., None]

    def nodes(self, plan):
        return plan[..., 0].argmax(2)

    def goal(self, target):
        return self.nodes(target)[:, -1]


class ShortestPath1DOf10(ShortestPath1D):
    """The same with 10 nodes. The release forgot this task's flag: neither weights of entries nor a corruption."""

    default_rank = 10
    released_rules = Rules(bound=1.0, candidate_bound=2.0)


class ShortestPath1DOf15(ShortestPath1DOf10):
    """The same with 15 nodes; the release forgot the flag here too."""

    default_rank = 15


class ShortestPath(PathTask):
    """A path whose plan is a course of graphs with a marked node. Input (N, N, 2), solution (16, N, N, 3), in signs.

    Channels of the input: edge from i to j, i is the start. Of the solution: both at 16 times (the node of that time
    instead of the start), and a one-hot of the edge taken, or (0, 0) once at the goal. The input does not say what the
    goal is, so the published task can only be guessed. In the release its corruption raises.
    """

    model = "gnn-conv"
    plan_steps, axes = 16, 2
    inp_dim, out_dim = 2, 3
    rules = Rules(bound=1.0, candidate_bound=2.0, entry_weights=plan_weights, corruption=ChangedStep(2))
    released_rules = Rules(bound=1.0, candidate_bound=2.0, level_bound=0.1, entry_weights=plan_weights)

    def encode(self, adjacency, start, path, dtype):
        path = padded(path, self.plan_steps)
        inp = signs(torch.stack([adjacency, rows_of(start, self.size)], -1), dtype)
        return inp, self.encode_plan(torch.cat([start[:, None], path[:, :-1]], 1), path, inp)

    def encode_plan(self, before, after, inp):
        moving = (before != after).long()
        edge = one_hot_signs(moving * (before * self.size + after), self.size**2, inp.dtype)
        edge = rearrange(edge, "b step (row column) -> b step row column", row=self.size)
        graph = repeat(inp[..., 0], "b row column -> b step row column", step=after.shape[1])
        at = repeat(one_hot_signs(before, self.size, inp.dtype), "b step row -> b step row column", column=self.size)
        return torch.stack([graph, at, edge], -1)

    def nodes(self, plan):
        return plan[..., 2].flatten(2).argmax(2) % self.size

    def goal(self, target):
        return start_node(target[:, -1])


def start_node(inp) -> torch.Tensor:
    """Return the node whose row is set in channel 1 of (B, N, N, channels): (B,)."""
    return inp[..., 1].sum(2).argmax(1)


def rows_of(node, size: int):
    """Return (B, N, N) bool, set in the node's row."""
    row = node[:, None] == torch.arange(size, device=node.device)
    return repeat(row, "b row -> b row column", column=size)


def padded(path, steps: int):
    """Return the path as (B, steps), its last node repeated."""
    return torch.cat([path, path[:, -1:].expand(-1, steps - path.shape[1])], 1)


def path_lengths(nodes: int) -> tuple[int, int]:
    """Return the shortest and the longest path of the published graphs of that size."""
    return (4, LONGEST) if nodes >= 20 else (2, LONGEST - 1)


@lru_cache(maxsize=8)
def path_pool(nodes: int, split: str, count: int, device: str) -> tuple[torch.Tensor, ...]:
    """Draw `count` problems: graphs (count, N, N) bool, starts (count,), and nodes after the start (count, LONGEST).

    They are drawn on the CPU, so that every device gets the same.
    """
    generator = seeded_generator(f"{split} paths", nodes, count)
    shortest, longest = path_lengths(nodes)
    length = torch.randint(shortest, longest + 1, (count,), generator=generator)
    graphs = torch.empty(count, nodes, nodes, dtype=torch.bool)
    start, path = torch.empty(count, dtype=torch.long), torch.empty(count, LONGEST, dtype=torch.long)
    missing = torch.arange(count)
    while len(missing):  # a length keeps its place until a graph has such a path: so lengths stay uniform
        tried = missing[:GRAPHS_AT_ONCE]
        adjacency = nearest_neighbours(len(tried), nodes, DEGREE, generator, "cpu")
        apart = distances(adjacency, longest)
        pairs = (apart == length[tried, None, None]).flatten(1)
        found = pairs.any(1)
        tried, adjacency, apart, pairs = (part[found] for part in (tried, adjacency, apart, pairs))
        pair = torch.multinomial(pairs.float(), 1, generator=generator)[:, 0] if len(tried) else tried
        graphs[tried], start[tried] = adjacency, pair // nodes
        path[tried] = random_shortest_paths(adjacency, apart, pair // nodes, pair % nodes, generator)
        missing = missing[~torch.isin(missing, tried)]
    return tuple(part.to(device) for part in (graphs, start, path))


def random_shortest_paths(adjacency, apart, start, goal, generator) -> torch.Tensor:
    """Draw nodes after the start (B, LONGEST), each uniform among successors nearer to the goal, which then repeats."""
    rows, node, path = torch.arange(len(start)), start, []
    to_goal = apart[rows, :, goal]
    for _ in range(LONGEST):
        nearer = adjacency[rows, node] & (to_goal == to_goal[rows, node, None] - 1)
        nearer[rows, goal] |= node == goal
        node = torch.multinomial(nearer.float(), 1, generator=generator)[:, 0] if len(node) else node
        path.append(node)
    return torch.stack(path, 1)
