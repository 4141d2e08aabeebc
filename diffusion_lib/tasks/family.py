"""Family relations: from parents and children to parents or uncles (IRED's release, after neural logic machines)."""

import torch

from diffusion_lib.tasks.base import Rules
from diffusion_lib.tasks.corruption import FlippedEntries
from diffusion_lib.tasks.encoding import permutations, signs
from diffusion_lib.tasks.graphs import PairTask

MARRIAGE = 0.8
NOBODY = -1


class FamilyTask(PairTask):
    """A relation of a random family tree. Input (n, n, 4) and solution (n, n) in signs.

    Channels of the input at (i, j): j is i's father, mother, son, daughter. The harder trees have half as many people
    again. The release has no corruption of its own for these tasks: here each entry flips with probability 0.05.
    """

    least_rank, default_rank = 2, 12
    inp_dim = 4
    rules = Rules(bound=1.0, candidate_bound=2.0, corruption=FlippedEntries(0.05))

    def sample(self, batch_size, generator=None, device="cpu", dtype=torch.float32):
        father, mother, male = family_trees(batch_size, self.size, generator, device)
        order = permutations(batch_size, self.size, generator, device)
        father, mother = (shuffled(one_hot_people(each), order) for each in (father, mother))
        male = male.gather(1, order)[:, None]
        child = (father | mother).mT
        inp = torch.stack([father, mother, child & male, child & ~male], -1)
        return signs(inp, dtype), signs(self.relation(father | mother, child & male), dtype)

    def relation(self, parent, son):
        """Return the solution (B, n, n) bool.

        parent, son: whether j is a parent of i, a son of i, (B, n, n) bool.
        """
        raise NotImplementedError

    def reference_predictions(self, inp, generator):
        return {"nobody": -torch.ones_like(inp[..., 0])}


class Parents(FamilyTask):
    """j is i's father or mother: the input says it."""

    def relation(self, parent, son):
        return parent


class Uncle(FamilyTask):
    """j is a son of a parent of a parent of i: i's own father counts, an uncle by marriage does not."""

    def relation(self, parent, son):
        grandparent = (parent.float() @ parent.float()) > 0
        return (grandparent.float() @ son.float()) > 0


def family_trees(batch_size: int, people: int, generator, device):
    """Draw family trees: father and mother (B, n), NOBODY where not recorded, and who is male (B, n) bool.

    People come one by one, so parents have lower numbers. The parents of each are drawn uniformly from none and all
    couples so far. After each, with probability 0.8, one single man and one single woman marry if their families allow
    it.
    """

    def uniform(*shape):
        return torch.rand(batch_size, *shape, generator=generator, device=device)

    rows = torch.arange(batch_size, device=device)
    male, choice, marry = uniform(people) < 0.5, uniform(people), uniform(people) < MARRIAGE
    couples = torch.full((batch_size, 1 + people // 2, 2), NOBODY, device=device)  # the first stands for none
    count = torch.ones(batch_size, dtype=torch.long, device=device)
    father, mother = torch.full((2, batch_size, people), NOBODY, device=device)
    single = torch.zeros(batch_size, people, dtype=torch.bool, device=device)
    for i in range(people):
        parents = couples[rows, (choice[:, i] * count).long()]
        father[:, i], mother[:, i] = parents.T
        single[:, i] = True
        lots = uniform(people)
        (man, some_man), (woman, some_woman) = (drawn(lots, single & sex) for sex in (male, ~male))
        wed = marry[:, i] & some_man & some_woman & may_marry(father, mother, man, woman)
        single[rows, man] &= ~wed
        single[rows, woman] &= ~wed
        place = count.clamp(max=people // 2)
        couples[rows, place] = torch.where(wed[:, None], torch.stack([man, woman], 1), couples[rows, place])
        count += wed
    return father, mother, male


def drawn(lots, among):
    """Choose uniformly one of the set places, (B,), and say whether there is one, (B,) bool."""
    return lots.masked_fill(~among, -1).argmax(1), among.any(1)


def may_marry(father, mother, man, woman) -> torch.Tensor:
    """Return whether a man and a woman may marry, (B,) bool.

    They may if one has no recorded father, or if they are neither siblings nor cousins, nor one a sibling of the
    other's parent.
    """

    def parent(table, person):
        return table.gather(1, person.clamp(min=0)[:, None])[:, 0].where(person != NOBODY, NOBODY)

    def siblings(one, other):
        first = parent(father, one)
        return (first != NOBODY) & (first == parent(father, other))

    his, hers = ([parent(table, person) for table in (father, mother)] for person in (man, woman))
    too_near = his[0] == hers[0]
    for one in (*his, man):
        for other in (*hers, woman):
            too_near = too_near | siblings(one, other)
    return (his[0] == NOBODY) | (hers[0] == NOBODY) | ~too_near


def one_hot_people(person):
    """Encode numbers (B, n), or NOBODY, as (B, n, n) bool."""
    return person[..., None] == torch.arange(person.shape[1], device=person.device)


def shuffled(relation, order):
    """Renumber a relation (B, n, n) between people."""
    rows = relation.gather(1, order[..., None].expand_as(relation))
    return rows.gather(2, order[:, None].expand_as(relation))
