"""Connectivity, family and paths: solutions against slow, independent ones; what is known of untrained predictors."""

import pytest
import torch

from dataset import Connectivity, Connectivity2, Parents, ShortestPath, ShortestPath1D, ShortestPath1DOf10, Uncle
from diffusion_lib.seeds import seeded_generator
from diffusion_lib.tasks.graph_algorithms import distances
from diffusion_lib.tasks.metrics import classification_rates, confusion, reaches_goal
from diffusion_lib.tasks.paths import PathTask, path_lengths, start_node


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
    monkeypatch.setattr(PathTask, "pool_size", dict.fromkeys(("train", "val", "test"), 1500))


def drawn(task, count=64):
    return task.sample(count, seeded_generator("test", 11))


def steps_from(edges: list[list[bool]], start: int) -> dict[int, int]:
    """Breadth-first search: how many edges away each node is that can be reached."""
    away, queue = {start: 0}, [start]
    for node in queue:
        for other, edge in enumerate(edges[node]):
            if edge and other not in away:
                away[other] = away[node] + 1
                queue.append(other)
    return away


def metrics(task, inp, target, prediction):
    return task.summary({k: v.mean().item() for k, v in task.score(inp, target.double(), prediction).items()})


@pytest.mark.parametrize("task", [Connectivity("val"), Connectivity2("train", 7), Connectivity2("val", ood=True)])
def test_connectivity_by_search(task):
    inp, target = drawn(task, 32)
    for graph, solution in zip(inp[..., 0] > 0, target > 0, strict=True):
        for node, row in enumerate(solution):
            assert row.nonzero()[:, 0].tolist() == sorted(steps_from(graph.tolist(), node))


def test_family_by_hand():
    inp, parents = drawn(Parents("val"))
    _, uncles = drawn(Uncle("val"))
    for people, parent, uncle in zip(inp > 0, parents > 0, uncles > 0, strict=True):
        father, mother, son, daughter = (part.tolist() for part in people.unbind(-1))
        everyone = range(len(father))
        for i in everyone:
            assert sum(father[i]) == sum(mother[i]) <= 1
            assert not any(f and m for f, m in zip(father[i], mother[i], strict=True))
            mine = {j for j in everyone if father[i][j] or mother[i][j]}
            assert {j for j in everyone if parent[i, j]} == mine
            assert {j for j in everyone if son[j][i] or daughter[j][i]} == mine
            grand = {g for p in mine for g in everyone if father[p][g] or mother[p][g]}
            assert {j for j in everyone if uncle[i, j]} == {j for g in grand for j in everyone if son[g][j]}


def test_parents_are_no_near_relatives():
    inp, _ = Parents("val", 16).sample(600, seeded_generator("test", 12))
    for people in inp > 0:
        father = dict(people[..., 0].nonzero().tolist())
        mother = dict(people[..., 1].nonzero().tolist())
        for man, woman in {(father[i], mother[i]) for i in father}:
            if man in father and woman in father:
                his, hers = ({one, father[one], mother[one]} for one in (man, woman))
                fathers = ({father[each] for each in side if each in father} for side in (his, hers))
                assert not set.intersection(*fathers)


@pytest.mark.parametrize(
    "task", [ShortestPath1D("val"), ShortestPath1DOf10("train", ood=True), ShortestPath("val", 12)]
)
def test_plans_are_shortest_paths(task):
    inp, target = drawn(task)
    plans, starts, goals = task.nodes(target), start_node(inp), task.goal(target)
    for graph, start, goal, plan in zip(inp[..., 0] > 0, starts.tolist(), goals.tolist(), plans.tolist(), strict=True):
        edges = graph.tolist()
        length = steps_from(edges, start)[goal]
        assert path_lengths(task.size)[0] <= length <= path_lengths(task.size)[1]
        for one, other in zip([start, *plan][:length], plan[:length], strict=True):
            assert edges[one][other]
        assert plan[length - 1] == goal
    assert metrics(task, inp, target, target)["success_over_chance"] == 1


def test_path_lengths_are_uniform():
    _, target = ShortestPath1D("train").sample(4000, seeded_generator("test", 13))
    moved = target[:, 1:, :, 0].argmax(2) != target[:, :-1, :, 0].argmax(2)
    lengths, counts = (moved.sum(1) + 1).unique(return_counts=True)
    assert lengths.tolist() == [4, 5, 6]
    assert (counts / 4000 - 1 / 3).abs().max() < 0.05  # of a pool of 1,500


def test_pools_of_splits_differ():
    inputs = [ShortestPath1D(split).sample(3, seeded_generator("test", 1))[0] for split in ("train", "val", "test")]
    assert not torch.equal(inputs[0], inputs[1])
    assert not torch.equal(inputs[1], inputs[2])


def test_a_plan_succeeds_only_along_edges():
    adjacency = torch.zeros(4, 4, dtype=torch.bool)
    adjacency[0, 1] = adjacency[1, 2] = adjacency[2, 3] = adjacency[3, 0] = True
    plans = torch.tensor([[1, 2, 3], [1, 3, 3], [2, 3, 3], [1, 2, 1], [1, 2, 2]])
    graphs, zero = adjacency.expand(5, 4, 4), torch.zeros(5, dtype=torch.long)
    assert reaches_goal(graphs, zero, zero + 3, plans).tolist() == [True, False, False, False, False]
    later = torch.tensor([[1, 2, 0]])  # what comes after the goal is not judged
    assert reaches_goal(graphs[:1], zero[:1], zero[:1] + 2, later).item()


@pytest.mark.parametrize("kind", [ShortestPath1D, ShortestPath])
def test_a_closed_loop_plans_anew_after_each_step(kind):
    """As long as a problem of the task is left, so a planner that knows the way mends what comes after a first step."""
    task = kind("val", 12)
    inp, target = drawn(task, 40)
    adjacency, start, goal = inp[..., 0] > 0, start_node(inp), task.goal(target)
    apart, rows = distances(adjacency), torch.arange(40)
    asked = []

    def encoded(place, nodes):
        return task.encode_plan(torch.cat([place[:, None], nodes[:, :-1]], 1), nodes, inp[: len(nodes)])

    def shortest_plans(changed, which):
        assert torch.equal(changed[..., 0], inp[which][..., 0])
        place, nodes = start_node(changed), []
        asked.append((which, place))
        for _ in range(task.plan_steps):
            left = apart[which, :, goal[which]].clone()
            left[~adjacency[which, place if not nodes else nodes[-1]]] = task.size  # only along edges
            arrived = (place if not nodes else nodes[-1]) == goal[which]
            nodes.append(torch.where(arrived, goal[which], left.argmin(1)))
        return encoded(place, torch.stack(nodes, 1))

    def success(prediction, plan=None):
        return task.execute(inp, target, prediction, plan)["closed_loop_success"].mean().item()

    assert success(target) == success(target, shortest_plans) == 1
    assert all((apart[which, place, goal[which]] >= 2).all() for which, place in asked)
    first = task.nodes(target)[:, :1].expand(-1, task.plan_steps)  # the first step, and then on the spot
    far = (apart[rows, start, goal] > 2).double().mean().item()
    assert 0 < far < 1
    assert success(encoded(start, first)) < 0.1
    assert success(encoded(start, first), shortest_plans) == pytest.approx(far, abs=0.1)
    no_edge = (~adjacency[rows, start]).int().argmax(1)[:, None].expand(-1, task.plan_steps)
    assert success(encoded(start, no_edge), shortest_plans) == 0


@pytest.mark.parametrize(
    ("rank", "ood", "expected"),
    [(12, False, (0.70, 0.81, 0.94, 0.987)), (12, True, (0.64, 0.73, 0.89, 0.967))],
)
def test_reachable_within_a_few_steps(rank, ood, expected):
    task = Connectivity2("val", rank, ood)
    inp, target = drawn(task, 4000)
    guesses = task.reference_predictions(inp, None)
    for steps, balanced in zip((1, 2, 4, 6), expected, strict=True):
        ours = metrics(task, inp, target, guesses[f"within {steps}"])
        assert ours["balanced_accuracy"] == pytest.approx(balanced, abs=0.012)
        assert ours["balanced_accuracy_off_diagonal"] < ours["balanced_accuracy"]
    everything = metrics(task, inp, target, guesses["all connected"])
    assert everything["accuracy"] == pytest.approx(0.76 if ood else 0.63, abs=0.015)
    assert everything["balanced_accuracy"] == 0.5


def test_nodes_without_a_path_are_within_no_number_of_steps():
    inp = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[None, ..., None]  # two nodes, no edge but to themselves
    guesses = Connectivity2("val", 2).reference_predictions(inp, None)
    assert all(torch.equal(guesses[f"within {k}"], inp[..., 0]) for k in (1, 2, 4, 6))


@pytest.mark.parametrize(("rank", "ood", "expected"), [(20, False, 0.729), (20, True, 0.73), (15, False, 0.62)])
def test_a_random_successor_scores_by_chance(rank, ood, expected):
    task = ShortestPath1D("val", rank, ood)
    inp, target = drawn(task, 1500)
    walk = task.reference_predictions(inp, seeded_generator("test", 14))["random walk"]
    ours = metrics(task, inp, target, walk)
    assert ours["first_step_shortens"] == pytest.approx(expected, abs=0.045)
    assert ours["success_over_chance"] == pytest.approx(0, abs=0.12)
    assert ours["first_action_feasibility"] == 1
    assert ours["plan_success"] < 0.3


def test_a_missing_class_has_no_balanced_accuracy():
    task = Connectivity("val", 4)
    inp, target = drawn(task, 8)
    ours = metrics(task, inp, torch.ones_like(target), torch.ones_like(target))
    assert ours["accuracy"] == 1
    assert ours["balanced_accuracy"] != ours["balanced_accuracy"]


def test_an_accuracy_is_at_most_1_whatever_its_sum_rounds_to():
    signs = torch.where(torch.arange(144) < torch.tensor([[75], [29], [122]]), 1.0, -1.0)
    means = {name: values.mean().item() for name, values in confusion(signs, signs).items()}
    assert means["true_positive"] + means["true_negative"] > 1
    assert classification_rates(means)["accuracy"] == 1
