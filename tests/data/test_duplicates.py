import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.looks import cropped, drawn, mirrored, saved_again, scaled
from lorapod.data.duplicates import near_duplicates, near_hashes
from lorapod.data.look import Look, look_at_picture

OTHERS = 40


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("looks")

    def of(picture: Image.Image) -> Look:
        path = folder / "picture.png"
        picture.save(path, compress_level=1)
        return look_at_picture(path, picture.size)

    return of


@pytest.mark.parametrize(
    ("change", "is_mirrored"),
    [
        (saved_again, False),
        (lambda picture: scaled(picture, 0.4), False),
        (lambda picture: scaled(saved_again(picture), 1.7), False),
        (lambda picture: cropped(picture, 0.02, 0.03, 0.01, 0.04), False),
        (lambda picture: cropped(picture, 0.06, 0, 0, 0), False),
        (mirrored, True),
        (lambda picture: saved_again(scaled(mirrored(picture), 0.6), 30), True),
        (lambda picture: mirrored(cropped(picture, 0.03, 0.02, 0.03, 0.02)), True),
    ],
)
def test_what_is_the_same_to_the_eye_is_found(look, change, is_mirrored: bool) -> None:  # type: ignore[no-untyped-def]
    originals = [drawn(i) for i in range(OTHERS)]
    found = 0
    seen = [look(picture) for picture in originals]
    for i in range(0, OTHERS, 2):
        groups = near_duplicates([*seen, look(change(originals[i]))])
        assert all(group.members == (i, OTHERS) for group in groups)
        found += bool(groups) and (OTHERS in groups[0].mirrored) == is_mirrored
    assert found >= 19  # of 20


def test_nothing_is_found_among_different_pictures(look) -> None:  # type: ignore[no-untyped-def]
    assert near_duplicates([look(drawn(i, (160, 120))) for i in range(600)]) == []


def test_pictures_of_one_make_are_told_apart(look) -> None:  # type: ignore[no-untyped-def]
    pictures = []
    for i in range(30):
        sheet = Image.new("RGB", (256, 256), (240, 240, 238))
        pen = ImageDraw.Draw(sheet)
        rng = random.Random(i)
        x, y = rng.randrange(50, 200), rng.randrange(50, 200)
        pen.ellipse([x - 40, y - 40, x + 40, y + 40], fill=tuple(rng.randrange(30, 220) for _ in range(3)))
        pictures.append(look(sheet))
    assert near_duplicates(pictures) == []


def test_another_face_before_the_same_background_is_no_copy(look) -> None:  # type: ignore[no-untyped-def]
    room = drawn(4)
    pictures = []
    for colour in ("white", "black", "red"):
        person = room.copy()
        ImageDraw.Draw(person).ellipse([130, 60, 200, 190], fill=colour)
        pictures.append(look(person))
    assert near_duplicates(pictures) == []


def test_recoloured_pictures_are_not_copies(look) -> None:  # type: ignore[no-untyped-def]
    red, green, blue = drawn(6).split()
    assert near_duplicates([look(drawn(6)), look(Image.merge("RGB", (blue, red, green)))]) == []


def test_empty_pictures_are_never_grouped(look) -> None:  # type: ignore[no-untyped-def]
    assert near_duplicates([look(Image.new("RGB", (64, 64), (i, i, i))) for i in range(6)]) == []


def test_many_copies_are_one_group_and_the_first_leads_it(look) -> None:  # type: ignore[no-untyped-def]
    once = look(drawn(1))
    copies = [look(saved_again(drawn(1), quality)) for quality in (90, 70, 50, 30)]
    groups = near_duplicates([look(drawn(2)), once, *copies * 100, look(drawn(3))])
    assert [group.members for group in groups] == [tuple(range(1, 402))]
    assert not groups[0].mirrored


def test_mirrored_members_are_told_from_the_first(look) -> None:  # type: ignore[no-untyped-def]
    picture = drawn(8)
    groups = near_duplicates(
        [look(picture), look(mirrored(picture)), look(saved_again(picture)), look(scaled(mirrored(picture), 0.5))]
    )
    assert len(groups) == 1
    assert groups[0].mirrored == {1, 3}


@pytest.mark.parametrize("bits", [0, 1, 7, 14])
def test_every_pair_of_hashes_within_the_limit_is_found(bits: int) -> None:
    rng = random.Random(bits)
    hashes = [rng.getrandbits(64) for _ in range(400)]
    for i in range(0, 400, 4):
        flips = sum(1 << bit for bit in rng.sample(range(64), bits))
        hashes.append(hashes[i] ^ flips)
    groups = near_hashes(hashes)
    joined = {frozenset(pair) for group in groups for pair in [group]}
    assert all(any({i, 400 + i // 4} <= group for group in joined) for i in range(0, 400, 4))


def test_hashes_are_found_as_by_comparing_all() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 40, dtype=np.uint64)
    hashes = np.repeat(centres, 5)
    for _ in range(9):
        hashes ^= np.uint64(1) << rng.integers(0, 64, len(hashes)).astype(np.uint64)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= 10
    expected = [set(np.nonzero(row)[0].tolist()) for row in near]
    groups = near_hashes(hashes.tolist(), 10)
    where = {i: set(group) for group in groups for i in group}
    for i, others in enumerate(expected):
        assert others <= where.get(i, {i})
    assert sum(map(len, groups)) == sum(len(others) > 1 for others in expected)


@pytest.mark.parametrize("kind", ["identical", "one ball", "one band"])
def test_hostile_hashes_take_little_memory_and_time(kind: str) -> None:
    rng = np.random.default_rng(1)
    count = 4000
    if kind == "identical":
        hashes = np.full(count, 7, dtype=np.uint64)
    elif kind == "one ball":
        flips = np.uint64(1) << rng.integers(0, 64, (count, 5)).astype(np.uint64)
        hashes = np.bitwise_xor.reduce(flips, axis=1)
    else:
        hashes = rng.integers(0, 2**51, count, dtype=np.uint64) << np.uint64(13)
    groups = near_hashes(hashes.tolist())
    if kind != "one band":
        assert [len(group) for group in groups] == [count]
