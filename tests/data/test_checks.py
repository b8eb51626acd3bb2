from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from data.looks import blurred, cropped, drawn, in_bars, mirrored, saved_again, scaled
from lorapod.data import Geometry, MediaCache, Problem, Severity
from lorapod.data.checks import Checked, Goal, TextLimit, check, limit_of
from lorapod.data.checks.tokens import estimate
from lorapod.recipe.schema import DatasetSection

DEMO = Path(__file__).parents[2] / "src/lorapod/demo"
SIZE = (512, 384)
GEOMETRY = Geometry(16)
DEMO_LIMIT = limit_of("demo", 512, 8, DEMO / "model")


def put(folder: Path, name: str, picture: Image.Image, caption: str | None = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / name)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption or f"zorb beside {name}", encoding="utf-8")
    return folder / name


def clean(folder: Path, count: int = 8, first: int = 0) -> Path:
    for i in range(first, first + count):
        put(folder, f"good-{i}.png", drawn(i, SIZE))
    return folder


def section(folder: Path, **keys: object) -> DatasetSection:
    return DatasetSection.model_validate(
        {"path": folder, "resolutions": [384], "trigger_word": "zorb", "validation_share": 0, **keys}
    )


def checked(*sections: DatasetSection, **keys: object) -> Checked:
    return check(sections, GEOMETRY, text=DEMO_LIMIT, **keys)  # type: ignore[arg-type]


def about(found: Checked, path: Path) -> list[Problem]:
    return [problem for problem in found.problems if problem.path == path]


def said(found: Checked, path: Path) -> str:
    return "\n".join(problem.what for problem in about(found, path))


def test_nothing_is_invented_on_a_clean_dataset(tmp_path: Path) -> None:
    found = checked(section(clean(tmp_path / "clean", 24)))
    assert found.problems == []
    assert len(found.trained_on) == 24
    assert set(found.looks) == found.trained_on


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Checked]]:
    """A folder with one of everything that is looked for in pictures and captions."""
    folder = clean(tmp_path_factory.mktemp("spoilt") / "spoilt")
    original = drawn(100, SIZE)
    put(folder, "original.png", original)
    put(folder, "twin.png", original)
    put(folder, "saved again.jpg", saved_again(original))
    put(folder, "smaller.png", scaled(original, 0.8))
    put(folder, "turned over.png", mirrored(original))
    put(folder, "cropped.png", cropped(original, 0.04, 0.02, 0.01, 0.03))
    put(folder, "small.png", drawn(101, (320, 240)))
    put(folder, "tiny.png", drawn(102, (96, 72)))
    put(folder, "wide.png", drawn(103, (1600, 300)))
    put(folder, "blurred.png", blurred(drawn(106, (1024, 768)), 12))
    put(folder, "black.png", drawn(107, SIZE).point(lambda value: value // 14))
    put(folder, "blown.png", drawn(108, SIZE).point(lambda value: 243 + value // 22))
    put(folder, "empty.png", Image.new("RGB", SIZE, (40, 90, 160)))
    put(folder, "letterboxed.png", in_bars(drawn(109, SIZE), 0.125))
    put(folder, "pillarboxed.png", in_bars(drawn(110, SIZE), 0.1, sides=True))
    put(folder, "uncaptioned.png", drawn(111, SIZE), None)
    put(folder, "silent.png", drawn(112, SIZE), " \n")
    put(folder, "same 1.png", drawn(113, SIZE), "a zorb in the woods")
    put(folder, "same 2.png", drawn(114, SIZE), "A zorb in  the woods\n")
    put(folder, "long.png", drawn(115, SIZE), "zorb " + "on a green hill under an apple tree " * 90 + "at the very end")
    put(folder, "no trigger.png", drawn(116, SIZE), "a thing in the snow")
    put(folder, "other case.png", drawn(117, SIZE), "a Zorb in the rain")
    put(folder, "excuse.png", drawn(118, SIZE), "I'm sorry, but I cannot describe this zorb.")
    (folder / "orphan.txt").write_text("zorb of nothing")
    whole = (folder / "good-1.png").read_bytes()
    (folder / "cut off.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut off.txt").write_text("zorb, cut off")
    (folder / "no picture.jpg").write_text("<!doctype html><title>404</title>")
    found = check([section(folder)], GEOMETRY, text=DEMO_LIMIT)
    yield folder, found


@pytest.mark.parametrize(
    ("name", "severity", "words"),
    [
        ("cut off.png", Severity.ERROR, "damaged or cut off"),
        ("no picture.jpg", Severity.ERROR, "web page"),
        ("uncaptioned.png", Severity.ERROR, "no caption file"),
        ("twin.png", Severity.WARNING, "the same file as original.png"),
        ("saved again.jpg", Severity.WARNING, "looks the same as original.png"),
        ("smaller.png", Severity.WARNING, "1.2 times smaller"),
        ("turned over.png", Severity.WARNING, "looks the same as original.png (mirrored)"),
        ("cropped.png", Severity.WARNING, "looks the same as original.png"),
        ("small.png", Severity.WARNING, "320x240 and enlarged 1.4 times to 448x320"),
        ("tiny.png", Severity.WARNING, "enlarged 4.7 times"),
        ("wide.png", Severity.WARNING, "cuts off"),
        ("blurred.png", Severity.WARNING, "sharpest edges are"),
        ("black.png", Severity.WARNING, "as good as black"),
        ("blown.png", Severity.WARNING, "blown out"),
        ("empty.png", Severity.WARNING, "nothing on it but one colour"),
        ("letterboxed.png", Severity.WARNING, "black bars: 12% top, 12% bottom"),
        ("pillarboxed.png", Severity.WARNING, "black bars: 10% left, 10% right"),
        ("silent.png", Severity.WARNING, "is empty"),
        ("same 1.png", Severity.WARNING, "the same caption as same 2.png"),
        ("long.png", Severity.WARNING, "of which demo reads 504; “"),
        ("other case.png", Severity.WARNING, "says “Zorb” and not the trigger word “zorb”"),
        ("excuse.png", Severity.WARNING, "excuse"),
        ("orphan.txt", Severity.WARNING, "no picture or clip of this caption's name"),
        (".", Severity.WARNING, "missing in 2 of"),
    ],
)
def test_what_is_wrong_is_found_with_its_numbers_and_a_remedy(
    spoilt: tuple[Path, Checked], name: str, severity: Severity, words: str
) -> None:
    folder, found = spoilt
    fitting = [problem for problem in about(found, folder / name) if words in problem.what]
    assert [problem.severity for problem in fitting] == [severity], said(found, folder / name)
    assert fitting[0].remedy


def test_nothing_else_is_found_in_the_spoilt_folder(spoilt: tuple[Path, Checked]) -> None:
    folder, found = spoilt
    fine = {item.path for item in found.items if item.path.name.startswith("good")} | {folder / "original.png"}
    assert [problem for problem in found.problems if problem.path in fine] == []
    expected = {"smaller.png": 1, "tiny.png": 1, "black.png": 1, "blown.png": 1, "empty.png": 1, "blurred.png": 1}
    assert {name: len(about(found, folder / name)) for name in expected} == expected


def test_the_worst_comes_first(spoilt: tuple[Path, Checked]) -> None:
    ranks = [problem.rank for problem in spoilt[1].problems]
    assert ranks == sorted(ranks)
    assert ranks[0] == 0
    assert len(spoilt[1].unusable) == 3


def test_copies_across_datasets_are_found_and_leaks_into_the_evaluation_named(tmp_path: Path) -> None:
    one, two = clean(tmp_path / "one", 8), clean(tmp_path / "two", 8, 20)
    put(two, "same bytes.png", drawn(1, SIZE))
    for i in range(8):
        put(two, f"again-{i}.jpg", saved_again(drawn(i, SIZE), 60), f"a zorb once more, {i}")
    found = checked(section(one, validation_share=0.4), section(two))
    assert "same file as one/good-1.png, in another dataset" in said(found, two / "same bytes.png")
    texts = [said(found, two / f"again-{i}.jpg") for i in range(8)]
    assert all(f"looks the same as one/good-{i}.png (saved again)" in text for i, text in enumerate(texts))
    assert 1 <= sum("one of the two is held out" in text for text in texts) <= 4
    assert [p for p in found.problems if p.path.parent == one] == []


def test_one_folder_in_two_datasets_is_no_duplicate(tmp_path: Path) -> None:
    folder = clean(tmp_path / "one")
    assert checked(section(folder), section(folder, resolutions=[256])).problems == []


def test_a_dataset_that_drowns_another_is_named_with_the_repeats_that_even_it(tmp_path: Path) -> None:
    few, many = clean(tmp_path / "few", 5), clean(tmp_path / "many", 8, 30)
    assert checked(section(few), section(many, repeats=2)).problems == []
    found = checked(section(few), section(many, repeats=8))
    assert said(found, few) == "It is seen 5 times in an epoch, many 64 times"
    assert "by 13" in about(found, few)[0].remedy


@pytest.mark.parametrize(
    ("sightings", "words"),
    [
        (None, ""),
        (800, ""),
        (4, "before every item was seen: it takes 50% of an epoch of 8"),
        (8000, "seen 1000 times"),
    ],
)
def test_a_training_that_fits_its_items_badly_is_named(tmp_path: Path, sightings: int | None, words: str) -> None:
    folder = clean(tmp_path / "one")
    text = said(checked(section(folder), sightings=sightings), folder)
    assert words in text
    assert bool(words) == bool(text)


def test_too_few_items_are_named(tmp_path: Path) -> None:
    assert "only 3 items" in said(checked(section(clean(tmp_path / "one", 3))), tmp_path / "one")


def test_all_captions_alike_and_no_trigger_word_are_only_noted(tmp_path: Path) -> None:
    folder = tmp_path / "style"
    for i in range(6):
        put(folder, f"{i}.png", drawn(i, SIZE), "a painting")
    found = checked(section(folder))
    assert {problem.severity for problem in found.problems} == {Severity.INFO}
    assert "All 6 captions are the same" in said(found, folder)
    assert "None of the 6 captions holds the trigger word" in said(found, folder)


def test_captions_are_estimated_and_said_to_be_without_a_tokenizer(tmp_path: Path) -> None:
    folder = clean(tmp_path / "one", 6)
    put(folder, "long.png", drawn(50, SIZE), "zorb, " + "grass, " * 60)
    found = check([section(folder)], GEOMETRY, text=limit_of("sdxl", 77, 2, None))
    assert "about 121 tokens (estimated: its tokenizer is not on disk), of which sdxl reads 75" in said(
        found, folder / "long.png"
    )


def test_tokens_are_counted_with_the_base_models_own_tokenizer() -> None:
    assert DEMO_LIMIT is not None and DEMO_LIMIT.is_counted
    assert DEMO_LIMIT.for_caption == 504
    damaged = TextLimit("x", 77, 2, Path(__file__))
    assert not damaged.is_counted
    assert damaged.lost("one two") == ""


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 0, 0),
        ("a cat on a mat", 5, 5),
        ("photorealistic, 8k, masterpiece", 7, 11),
        ("一只猫坐在垫子上", 8, 8),
        ("it's snow_covered!", 7, 8),
    ],
)
def test_estimates_are_near_what_tokenizers_count(text: str, least: int, most: int) -> None:
    assert least <= estimate(text) <= most


def test_a_second_check_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clean(tmp_path / "one", 6)
    cache = MediaCache(tmp_path / "cache" / "media.sqlite")
    first = checked(section(folder), cache=cache)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened again")

    monkeypatch.setattr("lorapod.data.look.load_picture", refuse)
    monkeypatch.setattr("lorapod.data.facts.probe", refuse)
    again = checked(section(folder), cache=cache)
    assert (again.problems, again.looks) == (first.problems, first.looks)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (None, ""),
        (Goal.CHARACTER, "6 items: few for a character, which wants 10 at least"),
        (Goal.STYLE, "6 items: few for a style, which wants 20 at least"),
        (Goal.MOTION, "No clips: few for a motion, which wants 8 at least"),
    ],
)
def test_how_many_items_are_few_depends_on_the_goal(tmp_path: Path, goal: Goal | None, expected: str) -> None:
    folder = clean(tmp_path / "one", 6)
    found = check([section(folder)], GEOMETRY, goal=goal)
    assert said(found, folder).startswith(expected)
    assert bool(said(found, folder)) is (goal is not None)


def test_too_many_items_for_a_character_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for i in range(101):
        put(folder, f"{i}.png", drawn(i, (64, 48)), f"zorb {i}")
    assert "101 items: many for a character" in said(check([section(folder)], GEOMETRY, goal=Goal.CHARACTER), folder)
    assert "many for" not in said(check([section(folder)], GEOMETRY, goal=Goal.STYLE), folder)
