"""marrowscope classifies single cells of bone-marrow smears. Not a medical device."""

__version__ = "0.1.0"
