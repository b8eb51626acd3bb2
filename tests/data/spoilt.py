"""A dataset spoilt in every way that `lorapod dataset check` knows, each file called after what is wrong with it.

    PYTHONPATH=tests python -m data.spoilt FOLDER

makes it, to look at what the command says; the picture in docs/datasets.md is of this folder.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from data.looks import blurred, drawn, in_bars, mirrored, saved_again
from data.moving import scene, still, write

SIZE = (640, 480)
CLIP = (640, 384)

EXPECTED = {
    "again.jpg": "looks the same as exact copy.png",
    "bars.png": "black bars",
    "black.png": "as good as black",
    "blurred.png": "blurred",
    "bomb.png": "claims more than",
    "cut off.jpg": "damaged or cut off",
    "cuts.mp4": "scene changes",
    "damaged.mp4": "damaged, cut off",
    "empty caption.png": "is empty",
    "few frames.mp4": "6 frames a second",
    "fine 1.png": "same file as exact copy.png",
    "frozen.mp4": "Nothing moves",
    "grey.png": "one colour",
    "long caption.png": "of which sdxl reads 75",
    "mirrored.png": "(mirrored)",
    "no caption.png": "no caption file",
    "orphan.txt": "no picture or clip of this caption's name",
    "photo.heic": "cannot be read",
    "same caption 1.png": "same caption as",
    "short.mp4": "too short",
    "small.png": "enlarged",
    "two lines.png": "2 lines",
    "utf-16.png": "not UTF-8",
    "varying.mkv": "frame rate varies",
    "white.png": "blown out",
    "wide.png": "cuts off",
}
"""What is to be said of each file; `notrigger.png` is said of the folder."""

FINE = ("exact copy.png", "fine 2.png", "fine 3.png", "fine.mp4", "notrigger.png", "same caption 2.png", "turned.jpg")
"""Nothing is to be said of these."""


def spoil(folder: Path) -> Path:
    """Makes the folder."""
    folder.mkdir(parents=True)
    for number, (name, picture) in enumerate(_pictures().items()):
        picture.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"a zorb in place number {number}")
    for name, caption in {
        "empty caption": "",
        "long caption": "a zorb " + "by the sea " * 40,
        "notrigger": "a boat at rest",
        "same caption 1": "a zorb by a tree",
        "same caption 2": "a zorb by a tree",
        "two lines": "a zorb\nby a wall",
        "orphan": "nothing",
    }.items():
        (folder / f"{name}.txt").write_text(caption)
    (folder / "no caption.txt").unlink()
    (folder / "utf-16.txt").write_bytes("a zorb für".encode("utf-16"))
    (folder / "photo.heic").write_bytes(b"heic")
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn(30, SIZE).save(folder / "turned.jpg", exif=exif.tobytes())
    (folder / "turned.txt").write_text("a zorb lies")
    drawn(1, SIZE).save(folder / "exact copy.png")
    (folder / "exact copy.txt").write_text("a zorb once more")
    whole = io.BytesIO()
    drawn(31, SIZE).save(whole, "JPEG")
    (folder / "cut off.jpg").write_bytes(whole.getvalue()[:8000])
    _clips(folder)
    return folder


def _pictures() -> dict[str, Image.Image]:
    names = [
        "no caption",
        "empty caption",
        "long caption",
        "notrigger",
        "same caption 1",
        "same caption 2",
        "two lines",
    ]
    names += ["utf-16", "fine 3"]
    plain = {f"{name}.png": drawn(40 + i, SIZE) for i, name in enumerate(names)}
    return plain | {
        "fine 1.png": drawn(1, SIZE),
        "fine 2.png": drawn(2, SIZE),
        "again.jpg": saved_again(drawn(1, SIZE)),
        "mirrored.png": mirrored(drawn(2, SIZE)),
        "bars.png": in_bars(drawn(3, SIZE), 0.125),
        "blurred.png": blurred(drawn(4, SIZE), 12),
        "black.png": Image.new("RGB", SIZE, (3, 3, 3)),
        "white.png": Image.new("RGB", SIZE, (254, 254, 254)),
        "grey.png": Image.new("RGB", SIZE, (120, 120, 120)),
        "small.png": drawn(5, (120, 90)),
        "wide.png": drawn(6, (1200, 200)),
        "bomb.png": Image.new("1", (20_000, 20_000)),
    }


def _clips(folder: Path) -> None:
    times = [0]
    for i in range(47):
        times.append(times[-1] + (110 if i % 3 == 0 else 30))
    write(folder / "fine.mp4", scene(60, 48, CLIP))
    write(folder / "cuts.mp4", [*scene(61, 20, CLIP), *scene(62, 28, CLIP)])
    write(folder / "frozen.mp4", still(63, 48, CLIP))
    write(folder / "short.mp4", scene(64, 10, CLIP))
    write(folder / "few frames.mp4", scene(65, 24, CLIP), fps=6)
    write(folder / "varying.mkv", scene(66, 48, CLIP), times=times)
    (folder / "damaged.mp4").write_bytes((folder / "fine.mp4").read_bytes()[:3000])
    for path in [*folder.glob("*.mp4"), *folder.glob("*.mkv"), folder / "cut off.jpg"]:
        path.with_suffix(".txt").write_text(f"a zorb, {path.stem}")


if __name__ == "__main__":
    spoil(Path(sys.argv[1]))
