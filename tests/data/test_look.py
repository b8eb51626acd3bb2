from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from data.looks import blurred, drawn, in_bars
from lorapod.data import Item, MediaCache, scan
from lorapod.data.look import LONGEST_SIDE, Look, look_at_picture, looks
from lorapod.errors import DatasetError

SIZE = (640, 480)


@pytest.fixture
def look(tmp_path: Path):  # type: ignore[no-untyped-def]
    def of(picture: Image.Image, name: str = "picture.png") -> Look:
        picture.save(tmp_path / name)
        return look_at_picture(tmp_path / name)

    return of


def busy(seed: int = 2) -> Image.Image:
    """With many clear edges."""
    picture = drawn(seed, SIZE)
    pen = ImageDraw.Draw(picture)
    for i in range(12):
        pen.rectangle([40 * i + 20, 60, 40 * i + 40, 420], fill=(250, 250, 250) if i % 2 else (10, 10, 10))
    return picture


def test_edges_are_as_wide_as_the_blur_makes_them(look) -> None:  # type: ignore[no-untyped-def]
    widths = [look(blurred(busy(), radius)).edge_width * SIZE[0] for radius in (0, 1, 2, 3)]
    assert widths == sorted(widths)
    assert widths[0] == pytest.approx(1, abs=0.2)
    # A step through a Gaussian rises at sigma * sqrt(2 pi) of its height a pixel at its steepest.
    assert widths[2] == pytest.approx(2 * 2.507, rel=0.3)


def test_a_picture_in_focus_before_a_blurred_background_is_sharp(look) -> None:  # type: ignore[no-untyped-def]
    picture = blurred(busy(), 6)
    picture.paste(busy().crop((220, 120, 420, 360)), (220, 120))
    assert look(picture).edge_width * SIZE[0] < 2


def test_without_clear_edges_nothing_is_said_of_sharpness(look) -> None:  # type: ignore[no-untyped-def]
    soft = Image.linear_gradient("L").resize(SIZE).convert("RGB")
    assert look(soft).edge_width == 0


@pytest.mark.parametrize("sides", [False, True])
def test_black_bars_are_measured_to_the_pixel(look, sides: bool) -> None:  # type: ignore[no-untyped-def]
    left, top, right, bottom = look(in_bars(drawn(3, SIZE), 0.125, sides=sides)).bars
    bars = (left, right) if sides else (top, bottom)
    assert bars == pytest.approx((0.125, 0.125), abs=0.005)
    assert (top, bottom) == (0, 0) if sides else (left, right) == (0, 0)


def test_a_subject_before_black_has_no_bars(look) -> None:  # type: ignore[no-untyped-def]
    night = Image.new("RGB", SIZE, "black")
    ImageDraw.Draw(night).ellipse([200, 100, 440, 380], fill="orange")
    assert not any(look(night).bars)
    low = Image.new("RGB", SIZE, "black")
    low.paste(drawn(1, (640, 300)), (0, 180))  # black above only, as a sky at night
    assert not any(look(low).bars)


def test_black_blown_and_empty_pictures_are_told_by_their_numbers(look) -> None:  # type: ignore[no-untyped-def]
    dark = look(drawn(1, SIZE).point(lambda value: value // 12))
    assert dark.high < 40 and dark.brightness < 16
    assert look(drawn(1, SIZE).point(lambda value: 245 + value // 26)).low > 235
    assert look(Image.new("RGB", SIZE, (90, 120, 40))).is_flat
    assert look(Image.new("RGB", SIZE, "white")).white == 1


def test_a_large_picture_is_measured_small_and_upright(look, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    picture = drawn(5, (3 * LONGEST_SIDE, LONGEST_SIDE))
    plain = look(picture, "plain.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    turned = look_at_picture(tmp_path / "turned.jpg")
    assert (plain.hashes[0] ^ turned.hashes[0]).bit_count() <= 4


def test_a_damaged_picture_is_a_dataset_error(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    with pytest.raises(DatasetError):
        look_at_picture(tmp_path / "bad.png")


def test_what_is_remembered_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        drawn(i).save(folder / f"{i}.png")
    items = scan(folder).items
    cache = MediaCache(tmp_path / "cache" / "media.sqlite")
    told: list[tuple[int, int]] = []
    first = looks(items, cache, lambda done, total: told.append((done, total)))
    assert set(first) == {item.path for item in items} and told[-1] == (4, 4)
    opened: list[Path] = []
    monkeypatch.setattr("lorapod.data.look.look_at_picture", lambda path, size=None: opened.append(path))
    assert looks(items, cache) == first
    assert opened == []
    drawn(9).save(folder / "2.png")
    looks(scan(folder).items, cache)
    assert opened == [folder / "2.png"]


def test_an_item_that_is_gone_is_left_out(tmp_path: Path) -> None:
    drawn(1).save(tmp_path / "here.png")
    items = scan(tmp_path).items
    gone = Item(tmp_path / "gone.png", 8, 8, None, None, 1, "0" * 64)
    assert set(looks([*items, gone])) == {tmp_path / "here.png"}


def test_what_another_release_kept_is_measured_again(tmp_path: Path) -> None:
    drawn(1).save(tmp_path / "a.png")
    items = scan(tmp_path).items
    cache = MediaCache(tmp_path / "cache" / "media.sqlite")
    looks(items, cache)
    from lorapod.data import FileId
    from lorapod.data.look import KIND, VERSION

    cache.keep(KIND, VERSION, {FileId.of(tmp_path / "a.png"): {"hashes": "not a look"}})
    assert looks(items, cache)[tmp_path / "a.png"].contrast > 4
