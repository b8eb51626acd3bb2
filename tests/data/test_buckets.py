import pytest

from lorapod.data import Bucket, Geometry, buckets_for, place
from lorapod.data.buckets import AREA_MARGIN
from lorapod.errors import DatasetError

RESOLUTIONS = [(64, 8), (256, 16), (512, 16), (768, 32), (1000, 16), (1024, 16), (1024, 64), (1328, 16), (100, 32)]


@pytest.mark.parametrize(("resolution", "divisor"), RESOLUTIONS)
def test_buckets_keep_divisor_area_and_ratio_and_come_with_their_transposes(resolution: int, divisor: int) -> None:
    buckets = buckets_for(resolution, divisor)
    assert buckets == sorted(set(buckets))
    assert any(bucket.width == bucket.height for bucket in buckets)
    for bucket in buckets:
        assert bucket.width % divisor == bucket.height % divisor == 0
        assert bucket.width * bucket.height <= resolution**2 * (1 + AREA_MARGIN)
        # The next larger short side would be over the margin or further from the area than this one.
        shorter, longer = sorted((bucket.width, bucket.height))
        over = (shorter + divisor) * longer
        missing = resolution**2 - shorter * longer
        assert over > resolution**2 * (1 + AREA_MARGIN) or over - resolution**2 >= missing
        assert longer <= 2.5 * shorter
        assert Bucket(bucket.height, bucket.width) in buckets


@pytest.mark.parametrize(("resolution", "divisor"), [(512, 16), (1024, 16), (1328, 16)])
def test_ordinary_pictures_lose_little_and_buckets_are_few(resolution: int, divisor: int) -> None:
    buckets = buckets_for(resolution, divisor)
    assert len(buckets) <= 25
    for width in range(1000, 2400, 7):
        assert place(width, 1000, buckets).lost_share < 0.08


def test_a_picture_covers_its_bucket_with_its_ratio_kept_and_the_crop_centred() -> None:
    placement = place(4000, 3000, [Bucket(1024, 1024)])
    assert placement.resize_to == (1365, 1024)
    assert placement.crop == (170, 0, 1194, 1024)
    assert placement.lost_share == pytest.approx(0.25, abs=0.001)
    assert placement.upscale == pytest.approx(1024 / 3000)


def test_the_bucket_that_cuts_off_least_is_chosen_and_then_the_one_that_enlarges_least() -> None:
    buckets = [Bucket(1024, 1024), Bucket(512, 512), Bucket(1216, 832)]
    assert place(600, 600, buckets).bucket == Bucket(512, 512)
    assert place(1520, 1040, buckets).bucket == Bucket(1216, 832)


def test_enlarging_is_told() -> None:
    assert place(128, 128, buckets_for(512, 16)).upscale == 4


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 7), (20000, 20000)])
def test_the_crop_lies_inside_whatever_the_picture(size: tuple[int, int]) -> None:
    placement = place(*size, buckets_for(512, 16))
    left, top, right, bottom = placement.crop
    assert (right - left, bottom - top) == (placement.bucket.width, placement.bucket.height)
    assert 0 <= left <= right <= placement.resize_to[0]
    assert 0 <= top <= bottom <= placement.resize_to[1]


def test_a_geometry_holds_its_shortest_side_and_says_when_nothing_fits() -> None:
    assert all(min(b.width, b.height) >= 448 for b in Geometry(16, min_side=448).buckets(512))
    with pytest.raises(DatasetError, match="resolution 256"):
        Geometry(16, min_side=512).buckets(256)
    with pytest.raises(DatasetError, match="resolution 64"):
        Geometry(128).buckets(64)
