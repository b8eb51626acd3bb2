"""Datasets: looked at, checked, put into buckets and into order.

scan            a folder -> items and problems
plan_datasets   the datasets of a recipe -> what is trained on, held out, and not used
batches         a plan -> the order of an epoch;  leftovers  what does not fill a batch
load_items      a plan's items -> pixels at their buckets' sizes, on all cores
"""

from lorapod.data.buckets import Bucket, Geometry, Placement, buckets_for, place
from lorapod.data.captions import compose, read_caption, shuffled_tags
from lorapod.data.epochs import BucketSummary, Fate, Leftover, batches, batches_per_epoch, leftovers, summary
from lorapod.data.loading import load_item, load_items
from lorapod.data.media_cache import FileId, MediaCache
from lorapod.data.names import shown
from lorapod.data.pictures import PictureInfo, load_mask, load_picture, probe
from lorapod.data.plan import (
    DataPlan,
    DatasetPlan,
    TrainItem,
    Unused,
    plan_dataset,
    plan_datasets,
)
from lorapod.data.scan import ControlPicture, Item, Scan, scan
from lorapod.data.sidecars import placed_beside
from lorapod.data.walk import Problem, Severity

__all__ = [
    "Bucket",
    "BucketSummary",
    "ControlPicture",
    "DataPlan",
    "DatasetPlan",
    "Fate",
    "FileId",
    "Geometry",
    "Item",
    "Leftover",
    "MediaCache",
    "PictureInfo",
    "Placement",
    "Problem",
    "Scan",
    "Severity",
    "TrainItem",
    "Unused",
    "batches",
    "batches_per_epoch",
    "buckets_for",
    "compose",
    "leftovers",
    "load_item",
    "load_items",
    "load_mask",
    "load_picture",
    "place",
    "placed_beside",
    "plan_dataset",
    "plan_datasets",
    "probe",
    "read_caption",
    "scan",
    "shown",
    "shuffled_tags",
    "summary",
]
