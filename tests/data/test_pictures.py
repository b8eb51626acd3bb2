import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from lorapod.data import Bucket, load_picture, place, probe
from lorapod.errors import DatasetError


def load(path: Path, width: int | None = None, height: int | None = None) -> np.ndarray:
    info = probe(path)
    return load_picture(path, place(info.width, info.height, [Bucket(width or info.width, height or info.height)]))


def quarters() -> Image.Image:
    """Red, green / blue, white; 32 wide and 16 high."""
    picture = Image.new("RGB", (32, 16), "white")
    for colour, at in (("red", (0, 0)), ("lime", (16, 0)), ("blue", (0, 8))):
        picture.paste(colour, (*at, at[0] + 16, at[1] + 8))
    return picture


def corners(pixels: np.ndarray) -> list[str]:
    names = {(255, 0, 0): "red", (0, 255, 0): "lime", (0, 0, 255): "blue", (255, 255, 255): "white"}
    at = [pixels[y, x] for y in (2, -3) for x in (2, -3)]
    return [names[tuple(255 * int(v > 127) for v in pixel)] for pixel in at]


STORED = {  # what is stored for a picture that looks like `quarters`, by EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {"quality": 95, "subsampling": 0}), ("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {}),
     ("a.tif", {"compression": "tiff_lzw"})],
)  # fmt: skip
def test_pictures_are_turned_as_their_exif_says(tmp_path: Path, name: str, options: dict, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = STORED[orientation]
    stored = quarters().transpose(turn) if turn is not None else quarters()
    stored.save(tmp_path / name, exif=exif, **options)
    info = probe(tmp_path / name)
    assert (info.width, info.height) == (32, 16)
    assert corners(load(tmp_path / name)) == ["red", "lime", "blue", "white"]


def test_a_large_turned_jpeg_is_reduced_to_its_bucket(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    big = quarters().resize((1600, 800)).transpose(Image.Transpose.ROTATE_90)
    big.save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = load(tmp_path / "a.jpg", 64, 32)
    assert pixels.shape == (32, 64, 3)
    assert pixels.dtype == np.uint8
    assert corners(pixels) == ["red", "lime", "blue", "white"]


def test_a_reduced_jpeg_is_nearly_what_the_full_picture_gives(tmp_path: Path) -> None:
    y, x = np.mgrid[0:900, 0:1200]
    waves = np.stack([127 + 120 * np.sin(x / 90), 127 + 120 * np.cos(y / 70), (x + y) / 9], axis=-1)
    picture = Image.fromarray(waves.astype(np.uint8))
    picture.save(tmp_path / "a.jpg", quality=98, subsampling=0)
    expected = np.asarray(picture.resize((160, 120), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(load(tmp_path / "a.jpg", 160, 120) - expected).max() <= 6


def test_the_crop_is_the_middle(tmp_path: Path) -> None:
    stripes = Image.new("RGB", (90, 30), "red")
    stripes.paste("lime", (30, 0, 60, 30))
    stripes.save(tmp_path / "a.png")
    pixels = load(tmp_path / "a.png", 30, 30)
    assert (pixels[:, 1:-1] == (0, 255, 0)).all()


def test_a_thin_picture_fills_its_bucket_without_a_gigantic_picture_on_the_way(tmp_path: Path) -> None:
    Image.new("RGB", (1, 20000), "red").save(tmp_path / "a.png")
    assert load(tmp_path / "a.png", 512, 512).shape == (512, 512, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_what_is_transparent_is_put_over_white(tmp_path: Path, mode: str) -> None:
    black = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    black.paste((0, 0, 0, 0), (0, 0, 4, 8))
    path = tmp_path / "a.png"
    if mode in ("RGBA", "LA"):
        black.convert(mode).save(path)
    else:
        grey = Image.new("L", (8, 8), 0)
        grey.paste(200, (0, 0, 4, 8))
        if mode in ("P", "PA"):
            indexed = Image.new("P", (8, 8), 0)
            indexed.putpalette([0, 0, 0, 10, 20, 30])
            indexed.paste(1, (0, 0, 4, 8))
            indexed.save(path, transparency=1 if mode == "P" else b"\xff\x00")
        else:
            grey.convert(mode).save(path, transparency=200 if mode == "L" else (200, 200, 200))
    assert probe(path).has_alpha
    pixels = load(path)
    assert (pixels[:, :3] == 255).all()
    assert (pixels[:, 5:] == 0).all()


def test_half_transparent_red_over_white_is_pink(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert np.abs(load(tmp_path / "a.png").astype(int) - (255, 127, 127)).max() <= 1


def write_16_bit_rgb_png(path: Path, rgb: tuple[int, int, int]) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + struct.pack(">3H", *rgb) * 8) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_sixteen_bits_become_eight_by_scale(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100, 65535, 300]] * 4, dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert load(tmp_path / name)[0].tolist() == [[0] * 3, [100] * 3, [255] * 3, [1] * 3]
    (tmp_path / "a.pgm").write_bytes(b"P5 4 4 65535\n" + values.astype(">u2").tobytes())
    assert load(tmp_path / "a.pgm")[0].tolist() == [[0] * 3, [100] * 3, [255] * 3, [1] * 3]
    write_16_bit_rgb_png(tmp_path / "rgb.png", (65535, 257 * 100, 0))
    assert load(tmp_path / "rgb.png")[0, 0].tolist() == [255, 100, 0]


def test_floats_are_taken_in_0_to_1_and_refused_beyond(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    assert load(tmp_path / "a.tif")[0, 0].tolist() == [128] * 3
    for wrong in (40.0, float("nan"), -1.0):
        Image.fromarray(np.full((4, 4), wrong, np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(DatasetError, match="8 or 16 bits"):
            probe(tmp_path / "b.tif")


@pytest.mark.parametrize(
    ("mode", "name"), [("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("1", "a.png"), ("L", "a.jpg"), ("P", "a.gif")]
)
def test_other_modes_become_rgb(tmp_path: Path, mode: str, name: str) -> None:
    colour = (255, 255, 255) if mode in ("1", "L") else (255, 0, 0)
    Image.new("RGB", (16, 16), colour).convert(mode).save(tmp_path / name)
    assert np.abs(load(tmp_path / name).astype(int) - colour).max() <= 4


def test_of_an_animation_the_first_frame_is_used_and_the_others_are_counted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    for name, options in (("a.gif", {}), ("a.png", {}), ("a.webp", {"lossless": True})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert probe(tmp_path / name).frames == 3
        assert load(tmp_path / name)[5, 5].tolist() == [255, 0, 0]


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp", "tif", "jp2"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_cut_off_files_are_refused_and_never_half_read(tmp_path: Path, extension: str, share: float) -> None:
    path = tmp_path / f"whole.{extension}"
    noise().save(path)
    cut = tmp_path / f"cut.{extension}"
    cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    placement = place(64, 64, [Bucket(64, 64)])
    for use in (probe, lambda path: load_picture(path, placement)):
        with pytest.raises(DatasetError, match=f"cut.{extension}"):
            use(cut)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty"),
        (b"hello, I am no picture at all", "no picture"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "PostScript"),
    ],
)
def test_what_is_no_picture_is_refused_and_says_what_it_is(tmp_path: Path, raw: bytes, why: str) -> None:
    (tmp_path / "a.png").write_bytes(raw)
    with pytest.raises(DatasetError) as caught:
        probe(tmp_path / "a.png")
    assert "a.png" in caught.value.what
    assert why in caught.value.why
    assert caught.value.remedy


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "a.png")
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DatasetError, match="million pixels"):
            probe(tmp_path / "a.png")


def test_a_picture_that_changed_since_it_was_placed_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (32, 16)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="changed"):
        load_picture(tmp_path / "a.png", place(16, 32, [Bucket(16, 16)]))


def test_broken_exif_does_not_make_a_good_picture_unusable(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", exif=b"Exif\0\0not a tiff header")
    assert probe(tmp_path / "a.jpg").width == 32


def test_many_threads_read_at_once_and_pillow_stays_as_it_was(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, threading.active_count())

    def one(i: int) -> str:
        try:
            return str(probe(tmp_path / ("a.png" if i % 2 else "cut.png")).width)
        except DatasetError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(100))) == ["refused", "32"] * 50
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, threading.active_count()) == before
