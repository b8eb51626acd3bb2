"""The little world that the demo base model is trained on: things drawn with Pillow, with captions.

A scene is one to three things on a plain background. Each thing has a kind (12), a colour (8), a size (3) and a place,
which is snapped to a grid (GRID). The character `momo`, which the packaged dataset shows and the base model must not
know, is drawn here too but never used in pre-training. Not covered: overlap, perspective, text, photographs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

SUPERSAMPLING = 3

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (247, 208, 60),
    "green": (60, 160, 80),
    "blue": (52, 110, 220),
    "purple": (136, 74, 190),
    "pink": (244, 130, 176),
    "brown": (138, 90, 58),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "gray": (150, 152, 158),
    "black": (28, 28, 34),
    "sky": (190, 224, 248),
    "mint": (196, 238, 212),
    "sand": (240, 224, 190),
}
SIZES = {"small": 48, "": 64, "big": 96}
"""Width of a thing in pixels, the same in every shape of picture."""

GRID = 16
"""Things stand on this grid of pixels, one cell of which is one token of the transformer (8 x VAE, 2 x 2 patch). A model
of a few million parameters then has a finite set of fragments to learn and draws clean outlines after an hour."""

PLACES = {
    "on the left": (0.27, 0.5),
    "on the right": (0.73, 0.5),
    "at the top": (0.5, 0.27),
    "at the bottom": (0.5, 0.73),
    "in the middle": (0.5, 0.5),
}
COUNTS = {1: "a", 2: "two", 3: "three"}

RGB = tuple[int, int, int]


def shade(colour: RGB, factor: float) -> RGB:
    """`colour` made darker (factor < 1) or lighter (factor > 1, towards white)."""
    if factor <= 1:
        r, g, b = (round(c * factor) for c in colour)
    else:
        r, g, b = (round(c + (255 - c) * (factor - 1)) for c in colour)
    return r, g, b


class Pen:
    """Draws in a thing's own coordinates: (0, 0) its centre, 1.0 half its width, y downwards."""

    def __init__(self, draw: ImageDraw.ImageDraw, cx: float, cy: float, half: float, flip: bool = False) -> None:
        self.draw, self.cx, self.cy, self.half, self.sign = draw, cx, cy, half, -1 if flip else 1

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.cx + self.sign * x * self.half, self.cy + y * self.half

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB) -> None:
        px, py = self.at(x, y)
        self.draw.ellipse([px - rx * self.half, py - ry * self.half, px + rx * self.half, py + ry * self.half], fill)

    def polygon(self, points: list[tuple[float, float]], fill: RGB) -> None:
        self.draw.polygon([self.at(x, y) for x, y in points], fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)


def _circle(pen: Pen, c: RGB) -> None:
    pen.ellipse(0, 0, 0.9, 0.9, c)
    pen.ellipse(-0.3, -0.35, 0.22, 0.18, shade(c, 1.45))


def _square(pen: Pen, c: RGB) -> None:
    pen.box(-0.8, -0.8, 0.8, 0.8, c)
    pen.box(-0.8, 0.5, 0.8, 0.8, shade(c, 0.78))


def _triangle(pen: Pen, c: RGB) -> None:
    pen.polygon([(0, -0.9), (0.95, 0.8), (-0.95, 0.8)], c)
    pen.polygon([(0, -0.9), (0.95, 0.8), (0.3, 0.8)], shade(c, 0.78))


def _star(pen: Pen, c: RGB) -> None:
    points = []
    for i in range(10):
        radius = 0.98 if i % 2 == 0 else 0.42
        angle = -math.pi / 2 + i * math.pi / 5
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    pen.polygon(points, c)


def _heart(pen: Pen, c: RGB) -> None:
    points = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -y / 17))
    pen.polygon(points, c)


def _ring(pen: Pen, c: RGB) -> None:
    # A hole cannot be drawn with a filled ellipse over an unknown background, so the ring is a thick arc.
    r = 0.9 * pen.half
    width = max(1, round(0.36 * pen.half))
    pen.draw.arc([pen.cx - r, pen.cy - r, pen.cx + r, pen.cy + r], 0, 360, fill=c, width=width)


def _house(pen: Pen, c: RGB) -> None:
    pen.box(-0.7, -0.1, 0.7, 0.9, c)
    pen.polygon([(-0.95, -0.1), (0, -0.9), (0.95, -0.1)], shade(c, 0.6))
    pen.box(-0.18, 0.3, 0.18, 0.9, (92, 60, 40))
    pen.box(-0.55, 0.1, -0.28, 0.4, (250, 240, 190))
    pen.box(0.28, 0.1, 0.55, 0.4, (250, 240, 190))


def _tree(pen: Pen, c: RGB) -> None:
    pen.box(-0.14, 0.2, 0.14, 0.95, (110, 72, 46))
    for x, y, r in ((0, -0.4, 0.52), (-0.42, 0.0, 0.42), (0.42, 0.0, 0.42)):
        pen.ellipse(x, y, r, r, c)
    pen.ellipse(-0.15, -0.5, 0.2, 0.16, shade(c, 1.35))


def _flower(pen: Pen, c: RGB) -> None:
    pen.box(-0.07, 0.1, 0.07, 0.98, (54, 130, 66))
    pen.polygon([(0, 0.75), (0.45, 0.5), (0.1, 0.9)], (54, 130, 66))
    for i in range(5):
        angle = -math.pi / 2 + i * 2 * math.pi / 5
        pen.ellipse(0.4 * math.cos(angle), -0.3 + 0.4 * math.sin(angle), 0.3, 0.3, c)
    pen.ellipse(0, -0.3, 0.22, 0.22, (250, 226, 120))


def _fish(pen: Pen, c: RGB) -> None:
    pen.polygon([(0.45, 0), (0.98, -0.5), (0.98, 0.5)], shade(c, 0.72))
    pen.ellipse(-0.15, 0, 0.75, 0.5, c)
    pen.ellipse(-0.5, -0.12, 0.15, 0.15, (255, 255, 255))
    pen.ellipse(-0.54, -0.12, 0.07, 0.07, (20, 20, 20))


def _mushroom(pen: Pen, c: RGB) -> None:
    pen.box(-0.26, 0, 0.26, 0.85, (240, 230, 210))
    pen.ellipse(0, 0.8, 0.26, 0.14, (240, 230, 210))
    px0, py0 = pen.at(-0.9 * pen.sign, -0.8)
    px1, py1 = pen.at(0.9 * pen.sign, 0.8)
    pen.draw.pieslice([px0, py0, px1, py1], 180, 360, fill=c)
    for x, y, r in ((-0.4, -0.3, 0.13), (0.1, -0.52, 0.13), (0.48, -0.22, 0.11)):
        pen.ellipse(x, y, r, r, (255, 250, 240))


def _cat(pen: Pen, c: RGB) -> None:
    pen.polygon([(-0.85, -0.85), (-0.15, -0.45), (-0.7, 0.1)], c)
    pen.polygon([(0.85, -0.85), (0.15, -0.45), (0.7, 0.1)], c)
    pen.ellipse(0, 0.12, 0.82, 0.72, c)
    for x in (-0.32, 0.32):
        pen.ellipse(x, 0.0, 0.17, 0.2, (255, 255, 255))
        pen.ellipse(x, 0.02, 0.08, 0.12, (20, 20, 20))
    pen.polygon([(-0.1, 0.28), (0.1, 0.28), (0, 0.4)], (60, 30, 36))


THINGS: dict[str, Callable[[Pen, RGB], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "house": _house,
    "tree": _tree,
    "flower": _flower,
    "fish": _fish,
    "mushroom": _mushroom,
    "cat": _cat,
}


def momo(pen: Pen) -> None:
    """The character of the packaged dataset: a teal one-eyed creature with striped horns and orange feet."""
    teal, dark, orange = (38, 166, 154), (20, 108, 104), (255, 138, 60)
    for x in (-0.36, 0.36):
        pen.ellipse(x, 0.86, 0.26, 0.12, orange)
    pen.polygon([(-0.62, -0.35), (-0.72, -0.98), (-0.2, -0.55)], orange)
    pen.polygon([(0.62, -0.35), (0.72, -0.98), (0.2, -0.55)], orange)
    pen.ellipse(-0.82, 0.3, 0.16, 0.26, dark)
    pen.ellipse(0.82, 0.3, 0.16, 0.26, dark)
    pen.ellipse(0, 0.12, 0.78, 0.74, teal)
    pen.ellipse(0, 0.5, 0.48, 0.34, (178, 235, 226))
    pen.ellipse(0, -0.14, 0.38, 0.38, (255, 255, 255))
    pen.ellipse(0.08, -0.12, 0.2, 0.2, (40, 30, 60))
    pen.ellipse(0.15, -0.2, 0.07, 0.07, (255, 255, 255))
    pen.polygon([(-0.14, 0.36), (0.02, 0.36), (-0.06, 0.5)], (255, 255, 255))


@dataclass(frozen=True)
class Group:
    """Things of one kind in a scene."""

    kind: str
    colour: str
    size: str = ""
    count: int = 1
    place: str = ""

    def words(self, with_place: bool = True) -> str:
        """The group in words, as the captions say it."""
        plural = self.count > 1 and self.kind not in ("fish", "momo")
        noun = self.kind + "s" if plural else self.kind
        named = self.kind == "momo" and self.count == 1 and not self.size
        adjectives = [a for a in (self.size, self.colour) if a]
        article = COUNTS[self.count]
        if article == "a" and ([*adjectives, noun])[0][0] in "aeiou":
            article = "an"
        words = ([] if named else [article]) + adjectives + [noun]
        if with_place and self.place:
            words.append(self.place)
        return " ".join(words)


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one or two groups and a background."""

    groups: tuple[Group, ...]
    background: str

    def caption(self) -> str:
        return " and ".join(g.words() for g in self.groups) + f", {self.background} background"


def draw(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Draws `scene`, `width` x `height` pixels. `rng` places what the scene leaves open."""
    s = SUPERSAMPLING
    picture = Image.new("RGB", (width * s, height * s), BACKGROUNDS[scene.background])
    pen_on = ImageDraw.Draw(picture)
    for x, y, group in _layout(scene, rng):
        crowded = len(scene.groups) > 1 or group.count > 1
        half = (SIZES["small"] if crowded else SIZES[group.size]) / 2
        cx, cy = _snapped(x * width, half, width) * s, _snapped(y * height, half, height) * s
        if group.kind == "momo":
            momo(Pen(pen_on, cx, cy, half * s, flip=rng.random() < 0.5))
        else:
            pen = Pen(pen_on, cx, cy, half * s, flip=group.kind == "fish" and rng.random() < 0.5)
            THINGS[group.kind](pen, COLOURS[group.colour])
    return picture.resize((width, height), Image.Resampling.BOX)


def _snapped(centre: float, half: float, side: int) -> float:
    """`centre` on the grid and inside the picture, pixels."""
    inside = min(max(centre, half), side - half)
    return min(max(round((inside - half) / GRID) * GRID + half, half), side - half)


def _layout(scene: Scene, rng: random.Random) -> list[tuple[float, float, Group]]:
    """Centres as shares of width and height."""
    if len(scene.groups) == 2:
        first, second = scene.groups
        slots = [(0.2, 0.5), (0.8, 0.5)]
        if first.place in ("on the right", "at the bottom"):
            slots.reverse()
        if first.place in ("at the top", "at the bottom"):
            slots = [(y, x) for x, y in slots]
        return [(x, y, group) for group, (x, y) in zip((first, second), slots, strict=True)]
    group = scene.groups[0]
    if group.count == 2:
        return [(x, 0.5, group) for x in (0.2, 0.8)]
    if group.count == 3:
        return [(x, y, group) for x, y in ((0.5, 0.2), (0.2, 0.8), (0.8, 0.8))]
    if group.place:
        return [(*PLACES[group.place], group)]
    return [(rng.choice([0.38, 0.5, 0.62]), rng.choice([0.38, 0.5, 0.62]), group)]


def random_scene(rng: random.Random) -> Scene:
    """A scene of the base model's world, without the character."""

    def group(**fixed: object) -> Group:
        kind, colour = rng.choice(list(THINGS)), rng.choice(list(COLOURS))
        return Group(kind=kind, colour=colour, **fixed)  # type: ignore[arg-type]

    background = rng.choice(list(BACKGROUNDS))
    roll = rng.random()
    if roll < 0.6:
        size = rng.choice(["", "", "small", "big"])
        place = rng.choice(list(PLACES)) if rng.random() < 0.6 else ""
        return Scene((group(size=size, place=place),), background)
    if roll < 0.75:
        return Scene((group(count=rng.choice([2, 3])),), background)
    first = group(place=rng.choice(["on the left", "on the right", "at the top", "at the bottom", "", ""]))
    return Scene((first, group()), background)


def random_doodle(width: int, height: int, rng: random.Random) -> Image.Image:
    """Random ellipses, polygons and lines: what teaches the VAE to keep pictures it has not seen."""
    s = 2

    def colour() -> RGB:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    picture = Image.new("RGB", (width * s, height * s), colour())
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(3, 14)):
        x, y = rng.uniform(0, width * s), rng.uniform(0, height * s)
        r = rng.choice([4, 8, 16, 32, 50]) * s * rng.uniform(0.5, 1.0)
        roll = rng.random()
        if roll < 0.5:
            q = r * rng.uniform(0.4, 1.0)
            pen.ellipse([x - r, y - q, x + r, y + q], colour())
        elif roll < 0.85:
            n = rng.randint(3, 6)
            turn = rng.uniform(0, 6.3)
            points = [
                (x + r * math.cos(turn + 6.283 * i / n), y + r * math.sin(turn + 6.283 * i / n)) for i in range(n)
            ]
            pen.polygon(points, colour())
        else:
            pen.line([x, y, x + rng.uniform(-r, r) * 2, y + rng.uniform(-r, r) * 2], colour(), width=rng.randint(2, 8))
    return picture.resize((width, height), Image.Resampling.BOX)
