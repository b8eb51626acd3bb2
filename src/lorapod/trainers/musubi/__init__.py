"""musubi-tuner: rendered, started and read as the separate programs that it is."""

from lorapod.trainers.musubi.render import check, render

__all__ = ["check", "render"]
