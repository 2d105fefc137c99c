"""Training: a recipe, a split and a folder of images make a run folder."""

from marrowscope.train.run import train

__all__ = ["train"]
