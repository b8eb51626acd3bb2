import random
from pathlib import Path

import pytest

from lorapod.data import compose, read_caption, shuffled_tags
from lorapod.errors import CaptionError


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        (b"a caf\xc3\xa9", "a café"),
        (b"\xef\xbb\xbfa dog\r\n", "a dog"),
        (b"  a dog\r\n\r\n on a mat \n", "a dog on a mat"),
        (b"\n", ""),
    ],
)
def test_caption_files_are_read_as_utf8_in_one_line(tmp_path: Path, raw: bytes, caption: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    assert read_caption(path) == caption


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"caf\xe9", "Byte 3 (0xe9)"),
        (b"\xef\xbb\xbfcaf\xe9", "Byte 6 (0xe9)"),
        ("dog".encode("utf-16"), "UTF-16"),
        ("dog".encode("utf-16-le"), "Byte 1 is zero"),
        (b"a" * (2 << 20), "bytes"),
    ],
)
def test_what_is_no_utf8_caption_is_refused_with_file_place_and_remedy(tmp_path: Path, raw: bytes, where: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    with pytest.raises(CaptionError) as caught:
        read_caption(path)
    assert "a.txt" in caught.value.what
    assert where in caught.value.why
    assert caught.value.remedy


def test_a_missing_caption_file_is_a_caption_error(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match=r"gone\.txt"):
        read_caption(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    ("caption", "trigger", "prefix", "composed"),
    [
        ("a dog", "momo", "", "momo, a dog"),
        ("a dog", "momo", "a photo of", "momo, a photo of a dog"),
        ("a dog", "", "drawing,", "drawing, a dog"),
        ("momo on a mat", "momo", "", "momo on a mat"),
        ("sleeping", "momo", "a photo of momo", "a photo of momo sleeping"),
        ("momos on a mat", "momo", "", "momo, momos on a mat"),
        ("he will run", "Will", "", "Will, he will run"),
        ("<momo> sits", "<momo>", "", "<momo> sits"),
        ("red fox runs", "red  fox", "", "red fox runs"),
        ("", "momo", "", "momo"),
        ("", "momo,", "photo,", "momo, photo"),
        ("", "", "", ""),
        (", a,, b ,  c,", "momo", "", "momo, a, b, c"),
        ("1,000 dogs", "", "", "1,000 dogs"),
    ],
)
def test_trigger_and_prefix_come_first_once_and_tidily(caption: str, trigger: str, prefix: str, composed: str) -> None:
    assert compose(caption, trigger_word=trigger, prefix=prefix) == composed


def test_shuffling_keeps_the_first_tags_and_loses_none() -> None:
    tags = [f"tag {i}" for i in range(9)]
    orders = {shuffled_tags(",".join(tags) + ",", 2, random.Random(seed)) for seed in range(20)}
    assert len(orders) > 10
    for order in orders:
        assert order.split(", ")[:2] == tags[:2]
        assert sorted(order.split(", ")) == tags
