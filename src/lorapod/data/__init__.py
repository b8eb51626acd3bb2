"""Datasets: looked at, checked, put into buckets and into order. Pictures so far; clips come later.

scan            a folder -> items and problems
plan_datasets   the datasets of a recipe -> what is trained on, held out, and not used
batches         a plan -> the order of an epoch
load_picture    an item's file -> pixels at its bucket's size
"""

from lorapod.data.buckets import Bucket, Geometry, Placement, buckets_for, place
from lorapod.data.captions import compose, read_caption, shuffled_tags
from lorapod.data.names import shown
from lorapod.data.pictures import PictureInfo, load_picture, probe
from lorapod.data.plan import (
    BucketSummary,
    DataPlan,
    DatasetPlan,
    TrainItem,
    Unused,
    batches,
    plan_dataset,
    plan_datasets,
    summary,
)
from lorapod.data.scan import Item, Scan, scan
from lorapod.data.walk import Problem, Severity

__all__ = [
    "Bucket",
    "BucketSummary",
    "DataPlan",
    "DatasetPlan",
    "Geometry",
    "Item",
    "PictureInfo",
    "Placement",
    "Problem",
    "Scan",
    "Severity",
    "TrainItem",
    "Unused",
    "batches",
    "buckets_for",
    "compose",
    "load_picture",
    "place",
    "plan_dataset",
    "plan_datasets",
    "probe",
    "read_caption",
    "scan",
    "shown",
    "shuffled_tags",
    "summary",
]
