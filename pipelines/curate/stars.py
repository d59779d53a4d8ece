"""Connected components by shuffles: large-star and small-star, each a function of the edges of some nodes.

An edge joins a node to a lesser one. A large-star step hands a node's greater neighbours to the least of all its neighbours, a
small-star step its lesser neighbours to the least of them; both keep the components as they are. Taken in turns they end
where every node hangs on the least of its component, after some log n rounds whatever the shape (a chain of n takes log2 n).
Promise: a step needs the edges of its own nodes only, so nodes may be dealt to any number of tasks. Price: a sort of the
edges a step. After: Kiveris et al., Connected Components in MapReduce and Beyond (SoCC 2014).
"""

from __future__ import annotations

import numpy as np

from pipelines.curate.spans import Ints

__all__ = ["by_rounds", "large_star", "small_star"]

_MOST_ROUNDS = 100


def large_star(node: Ints, neighbour: Ints) -> tuple[Ints, Ints, int]:
    """Edges (greater, least) after the step, and how many of them are new; each edge is given from both of its ends.

    >>> [x.tolist() for x in large_star(np.array([5, 5, 2, 9]), np.array([2, 9, 5, 5]))[:2]]
    [[5, 9], [2, 2]]
    """
    node, neighbour, begins, sizes = _by_node(node, neighbour)
    if not node.size:
        return node, node, 0
    least = np.repeat(np.minimum(np.minimum.reduceat(neighbour, begins), node[begins]), sizes)
    greater = neighbour > node
    return neighbour[greater], least[greater], int((least[greater] != node[greater]).sum())


def small_star(node: Ints, lesser: Ints) -> tuple[Ints, Ints, int]:
    """Edges (greater, least) after the step, and how many of them are new; each edge is given from its greater end.

    >>> [x.tolist() for x in small_star(np.array([9, 9]), np.array([5, 2]))[:2]]
    [[5, 9], [2, 2]]
    """
    node, lesser, begins, sizes = _by_node(node, lesser)
    if not node.size:
        return node, node, 0
    least = np.repeat(np.minimum.reduceat(lesser, begins), sizes)
    other = lesser != least
    greater = np.concatenate((node[begins], lesser[other]))
    return *_by_node(greater, np.concatenate((least[begins], least[other])))[:2], int(other.sum())


def by_rounds(greater: Ints, least: Ints) -> tuple[Ints, Ints, int]:
    """The steps in turns until nothing is new, all nodes in one place: what the shuffles do, and how many rounds it takes.

    >>> by_rounds(np.arange(1, 9), np.arange(8))[1].tolist()
    [0, 0, 0, 0, 0, 0, 0, 0]
    """
    for rounds in range(1, _MOST_ROUNDS):
        greater, least, moved = large_star(np.concatenate((greater, least)), np.concatenate((least, greater)))
        greater, least, joined = small_star(greater, least)
        if not moved + joined:
            return greater, least, rounds
    raise AssertionError(f"components did not settle in {_MOST_ROUNDS} rounds")


def _by_node(node: Ints, neighbour: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """The distinct edges in order of their nodes, where each node's begin, and how many it has."""
    order = np.lexsort((neighbour, node))
    node, neighbour = node[order], neighbour[order]
    new = np.ones(node.size, bool)
    new[1:] = (node[1:] != node[:-1]) | (neighbour[1:] != neighbour[:-1])
    node, neighbour = node[new], neighbour[new]
    if not node.size:
        return node, neighbour, node, node
    begins = np.flatnonzero(np.concatenate(([True], node[1:] != node[:-1])))
    return node, neighbour, begins, np.diff(begins, append=node.size)
