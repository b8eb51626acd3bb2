"""Pictures that are the same to the eye: saved again, scaled, cropped a little, or mirrored.

Two steps. A 64-bit perceptual hash finds candidates through an index of its parts (multi-index hashing: Norouzi, Punjani
and Fleet, 2012, https://arxiv.org/abs/1307.2982), so that nothing is compared with everything; thumbnails then decide,
since hashes alone take different pictures of one make for the same. Not covered: strong crops, rotation, recolouring.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lorapod.data.look import THUMB, Look

MOST_BITS = 14
"""Bits in which the hashes of two candidates may differ."""

_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
"""First bit and length. Of at most 14 differing bits, one of five bands holds at most two."""

_ENOUGH = 64
"""Candidates after which no more are looked for: of a thousand copies, each needs to meet a few to be found with all."""

_AT_ONCE = 1 << 20
"""Pairs of hashes compared at once, which bounds memory."""

_MOST_REFUSED = 24
"""Candidates of a picture, nearest first, whose thumbnails are looked at in vain."""

_CROPS = (0.0, 0.03, 0.06, 0.09)
"""Shares that may be cut off a side of one of the two."""

_SAME = 0.99
"""Correlation of two softened thumbnails of one picture, at least."""

_WORTH_A_LOOK = 0.75
"""The same before crops are tried, at least."""

_ALIKE = 6.0
"""Their mean difference, of 255, at most."""

_MOST_APART = 20.0
"""Their largest difference at one place beyond what edges that were moved a little explain, at most: where it is larger,
something else is to be seen there, as another face before the same background."""

_OF_EDGES = 0.3

_CLIP_SECONDS = 0.1
"""Share by which two clips that are the same may differ in length."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Pictures or clips that are the same to the eye, as indices into what was given; the first is the earliest.

    Attributes:
        mirrored: Those of them that are mirror images of the first.
    """

    members: tuple[int, ...]
    mirrored: frozenset[int] = frozenset()


def near_duplicates(looks: Sequence[Look]) -> list[Group]:
    """Groups of two or more that are the same to the eye, in the order of their first members.

    Within a group each is near to another, not to all. Pictures in which there is nothing to tell are never grouped.
    Pictures and clips are not compared with each other.
    """
    telling = [i for i, look in enumerate(looks) if not look.is_flat]
    if len(telling) < 2:
        return []
    thumbs = np.stack([_softened(looks[i].thumbs[len(looks[i].thumbs) // 2]) for i in telling])
    union = _Union(len(telling))
    refused: dict[int, int] = {}
    for one, other, mirrored in _candidates([looks[i] for i in telling], thumbs):
        if union.of(one) == union.of(other) or max(refused.get(one, 0), refused.get(other, 0)) >= _MOST_REFUSED:
            continue
        if _same_to_the_eye(looks[telling[one]], looks[telling[other]], mirrored):
            union.join(one, other, mirrored)
        else:
            refused[one], refused[other] = refused.get(one, 0) + 1, refused.get(other, 0) + 1
    return [
        Group(
            tuple(telling[i] for i in members),
            frozenset(telling[i] for i in members if union.mirrored(i, members[0])),
        )
        for members in union.groups()
    ]


def near_hashes(hashes: Sequence[int], most_bits: int = MOST_BITS) -> list[tuple[int, ...]]:
    """Groups of two or more indices whose hashes differ in at most `most_bits` (14 at most) from another's in the group."""
    values, which = np.unique(np.array(hashes, dtype=np.uint64), return_inverse=True)
    union = _Union(len(hashes))
    first: dict[int, int] = {}
    for i, value in enumerate(which.tolist()):
        union.join(first.setdefault(value, i), i)
    for left, right, _ in _near_pairs(values, values, most_bits):
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            union.join(first[one], first[other])
    return [tuple(group) for group in union.groups()]


def _candidates(looks: Sequence[Look], thumbs: NDArray[np.float32]) -> Iterator[tuple[int, int, bool]]:
    """Pairs that are worth a closer look, and whether one is then the mirror image; the most alike first."""
    plain = np.array([look.hashes[0] for look in looks], dtype=np.uint64)
    turned = np.array([look.mirrored[0] for look in looks], dtype=np.uint64)
    # Of two pictures of which one is cropped, the hash of all of it is like that of the other's centre.
    held = np.array([[look.hashes[0], look.hashes[1]] for look in looks], dtype=np.uint64).ravel()
    values, which = np.unique(held, return_inverse=True)
    owners = _owners(which, len(values))
    pairs: dict[tuple[int, int], tuple[int, bool]] = {}
    for mirrored, queries in ((False, plain), (True, turned)):
        for left, right, distances in _near_pairs(queries, values, MOST_BITS):
            for one, value, distance in zip(left.tolist(), right.tolist(), distances.tolist(), strict=True):
                for other in owners[value]:
                    key = (min(one, other), max(one, other))
                    if one != other and distance < pairs.get(key, (65, False))[0]:
                        pairs[key] = (distance, mirrored)
    ordered = sorted((distance, *key, mirrored) for key, (distance, mirrored) in pairs.items())
    for start in range(0, len(ordered), 4096):
        some = ordered[start : start + 4096]
        ones = thumbs[[one for _, one, _, _ in some]]
        others = thumbs[[other for _, _, other, _ in some]]
        flip = np.array([mirrored for *_, mirrored in some])
        others[flip] = others[flip, :, ::-1]
        worth = _correlations(ones, others) >= _WORTH_A_LOOK
        yield from ((one, other, mirrored) for (_, one, other, mirrored), yes in zip(some, worth, strict=True) if yes)


def _owners(which: Indices, count: int) -> list[list[int]]:
    """Pictures of each hash, of very many with one hash the first."""
    owners: list[list[int]] = [[] for _ in range(count)]
    for position, value in enumerate(which.tolist()):
        if len(owners[value]) < _ENOUGH and position // 2 not in owners[value]:
            owners[value].append(position // 2)
    return owners


def _near_pairs(
    queries: NDArray[np.uint64], held: NDArray[np.uint64], most_bits: int
) -> Iterator[tuple[Indices, Indices, NDArray[np.uint8]]]:
    """Indices of queries, indices of what is held, and the bits in which they differ; pairs may come more than once."""
    found = np.zeros(len(queries), dtype=np.int64)
    for first, bits in _BANDS:
        shift, mask = np.uint64(first), np.uint64((1 << bits) - 1)
        parts = ((held >> shift) & mask).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(parts, minlength=1 << bits))])
        asked = ((queries >> shift) & mask).astype(np.int64)
        by_part = np.argsort(asked, kind="stable")
        for flip in _flips(bits):
            active = by_part[found[by_part] < _ENOUGH]
            wanted = asked[active] ^ flip
            counts = starts[wanted + 1] - starts[wanted]
            for some in _portions(counts):
                sizes = counts[some]
                left = np.repeat(active[some], sizes)
                within = np.arange(len(left)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
                right = order[np.repeat(starts[wanted[some]], sizes) + within]
                distances = np.bitwise_count(queries[left] ^ held[right])
                near = np.nonzero(distances <= most_bits)[0]
                if len(near):
                    near = near[_rank_in_run(left[near]) < _ENOUGH]
                    found += np.bincount(left[near], minlength=len(queries))
                    yield left[near], right[near], distances[near]


def _rank_in_run(values: Indices) -> Indices:
    """Of each value, how many of the same come directly before it."""
    positions = np.arange(len(values))
    begins = np.concatenate([[True], values[1:] != values[:-1]])
    ranks: Indices = positions - np.maximum.accumulate(np.where(begins, positions, 0))
    return ranks


def _portions(counts: Indices) -> Iterator[slice]:
    """Slices of the queries that ask for about as many comparisons as are made at once, one query at least."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _AT_ONCE, side="right")))
        yield slice(start, stop)
        start = stop


class _Union:
    """Disjoint sets that know whether a member is the mirror image of another."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self._turned = [False] * count
        self._size = [1] * count

    def of(self, i: int) -> int:
        return self._find(i)[0]

    def size(self, i: int) -> int:
        return self._size[self.of(i)]

    def mirrored(self, i: int, other: int) -> bool:
        return self._find(i)[1] != self._find(other)[1]

    def join(self, i: int, other: int, mirrored: bool = False) -> None:
        (root, turned), (root_of_other, turned_other) = self._find(i), self._find(other)
        if root != root_of_other:
            if self._size[root] < self._size[root_of_other]:
                root, root_of_other = root_of_other, root
            self._parent[root_of_other] = root
            self._turned[root_of_other] = turned ^ turned_other ^ mirrored
            self._size[root] += self._size[root_of_other]

    def groups(self) -> list[list[int]]:
        """Sets of two or more, each in order."""
        sets: dict[int, list[int]] = {}
        for i in range(len(self._parent)):
            sets.setdefault(self.of(i), []).append(i)
        return [members for members in sets.values() if len(members) > 1]

    def _find(self, i: int) -> tuple[int, bool]:
        turned = False
        while self._parent[i] != i:
            turned ^= self._turned[i]
            i = self._parent[i]
        return i, turned


@cache
def _flips(bits: int) -> tuple[int, ...]:
    """All patterns of at most two set bits."""
    single = [1 << i for i in range(bits)]
    double = [a | b for a, b in combinations(single, 2)]
    return (0, *single, *double)


def _same_to_the_eye(look: Look, other: Look, mirrored: bool) -> bool:
    if len(look.thumbs) != len(other.thumbs):
        return False
    if abs(look.seconds - other.seconds) > _CLIP_SECONDS * max(look.seconds, other.seconds):
        return False
    return all(_alike(_softened(a), _softened(b), mirrored) for a, b in zip(look.thumbs, other.thumbs, strict=True))


def _softened(thumb: str) -> NDArray[np.float32]:
    """A thumbnail (h, w, 3), softened so that a shift by a part of a pixel changes little."""
    values = np.frombuffer(base64.b64decode(thumb), dtype=np.uint8).reshape(THUMB, THUMB, 3).astype(np.float32)
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return ((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4).astype(np.float32)


def _alike(one: NDArray[np.float32], other: NDArray[np.float32], mirrored: bool) -> bool:
    """Whether two thumbnails (h, w, 3) show the same, where a little may be cut off one of them."""
    if mirrored:
        other = other[:, ::-1]
    if float(np.abs(one.mean(axis=(0, 1)) - other.mean(axis=(0, 1))).max()) > 4 * _ALIKE:
        return False
    return _matches(one[None], other) or _matches(_cropped(one), other) or _matches(_cropped(other), one)


def _matches(candidates: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether one of the candidates (n, h, w, 3) is the other (h, w, 3) but for what compression and scaling change."""
    apart = np.abs(candidates - other)
    near = (apart.mean(axis=(1, 2, 3)) <= _ALIKE) & (
        (apart - _OF_EDGES * _range_around(other)).max(axis=(1, 2, 3)) <= _MOST_APART
    )
    if not near.any():
        return False
    return bool((_correlations(candidates[near], other[None]) >= _SAME).any())


def _correlations(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each of some pictures (n, h, w, 3) with another."""
    left = ones - ones.mean(axis=(1, 2, 3), keepdims=True)
    right = others - others.mean(axis=(1, 2, 3), keepdims=True)
    size = np.sqrt((left**2).sum(axis=(1, 2, 3)) * (right**2).sum(axis=(1, 2, 3))) + 1e-6
    found: NDArray[np.float32] = (left * right).sum(axis=(1, 2, 3)) / size
    return found


def _range_around(thumb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Highest less lowest value among a pixel and its neighbours, (h, w, 3)."""
    padded = np.pad(thumb, ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = np.stack([padded[i : i + THUMB, j : j + THUMB] for i in range(3) for j in range(3)])
    spread: NDArray[np.float32] = around.max(axis=0) - around.min(axis=0)
    return spread


def _cropped(thumb: NDArray[np.float32]) -> NDArray[np.float32]:
    """The thumbnail (h, w, 3) with a little cut off its sides, in all ways (n, h, w, 3), scaled back."""
    ways = _ways()  # (m, 16, 16)
    down = np.einsum("mij,jkc->mikc", ways, thumb)
    crops = np.einsum("nkj,mijc->mnikc", ways, down)
    found: NDArray[np.float32] = crops.reshape(-1, THUMB, THUMB, 3)
    return found


@cache
def _ways() -> NDArray[np.float32]:
    """Matrices (m, 16, 16) that cut a share off either end of a line and scale the rest back, linearly."""
    ways = []
    for before in _CROPS:
        for after in _CROPS:
            positions = (before + (np.arange(THUMB) + 0.5) / THUMB * (1 - before - after)) * THUMB - 0.5
            positions = np.clip(positions, 0, THUMB - 1)
            low = np.minimum(positions.astype(int), THUMB - 2)
            share = positions - low
            way = np.zeros((THUMB, THUMB), dtype=np.float32)
            way[np.arange(THUMB), low] = 1 - share
            way[np.arange(THUMB), low + 1] += share
            ways.append(way)
    return np.stack(ways)
