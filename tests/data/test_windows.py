from __future__ import annotations

import pytest

from lorapod.data.windows import Window, windows_for
from lorapod.recipe.choices import ClipWindows

HEAD, MIDDLE, UNIFORM, EVERY = ClipWindows.HEAD, ClipWindows.MIDDLE, ClipWindows.UNIFORM, ClipWindows.EVERY


def test_the_largest_length_that_fits_is_taken() -> None:
    assert windows_for(5.0, [17, 33, 81], 16, HEAD) == [Window(0.0, 33, 16)]
    assert windows_for(5.0625, [17, 33, 81], 16, HEAD) == [Window(0.0, 81, 16)]


def test_five_seconds_at_sixteen_have_eighty_frames_and_not_eighty_one() -> None:
    assert windows_for(5.0, [81], 16, HEAD) == []
    assert windows_for(5.0, [80], 16, HEAD) == [Window(0.0, 80, 16)]


@pytest.mark.parametrize("mode", list(ClipWindows))
@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.06, 2.2, 5.0, 5.07, 31.7])
def test_every_sample_lies_inside_the_clip(mode: ClipWindows, seconds: float) -> None:
    for window in windows_for(seconds, [1, 17, 33], 16, mode, 3):
        assert window.times[0] >= 0 and window.times[-1] < seconds
        assert len(window.times) == window.frames


def test_the_middle_is_in_the_middle() -> None:
    (window,) = windows_for(5.0, [33], 16, MIDDLE)
    assert window.start == pytest.approx((5.0 - 33 / 16) / 2)


def test_uniform_windows_reach_from_the_beginning_to_the_end() -> None:
    windows = windows_for(10.0, [33], 16, UNIFORM, 3)
    assert [w.start for w in windows] == pytest.approx([0.0, (10 - 33 / 16) / 2, 10 - 33 / 16])


def test_uniform_windows_of_a_clip_with_nothing_to_spare_are_one() -> None:
    assert windows_for(33 / 16, [33], 16, UNIFORM, 5) == [Window(0.0, 33, 16)]


def test_every_window_stands_after_the_one_before() -> None:
    windows = windows_for(7.0, [33], 16, EVERY)
    assert [w.start for w in windows] == pytest.approx([0.0, 33 / 16, 66 / 16])


def test_a_clip_too_short_gives_none() -> None:
    assert windows_for(0.9, [17], 16, EVERY) == []
