"""Several captions of an item: asked for one by one, written together, trained with in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorapod.captioning.cleaning import Judge, unsound
from lorapod.captioning.ledger import undo_newest
from lorapod.captioning.wishes import variants_of
from lorapod.captioning.wording import Wish
from lorapod.data import Geometry, plan_datasets
from lorapod.errors import RequestError
from lorapod.recipe.schema import DatasetSection
from tests.captioning.helpers import captioned, make_pictures, run, service
from tests.fakes.openai import FakeOpenAI

WISH = Wish(trigger="ohwx")


def judges(variants: str = "long,short,tags") -> list[Judge]:
    return [Judge(wish) for wish in variants_of(WISH, variants, "openai")]
