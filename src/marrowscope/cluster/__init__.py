"""Predictions on many machines: the same predictor as Ray Data actors, from a store of images to a folder of Parquet.

packages  Ray and pyarrow, loaded when they are needed
stores    where images and results lie: a shared disk, S3-compatible stores, Google Cloud Storage
listing   what the sources stand for, in a fixed order, cut into parts
target    the folder of results: its manifest, the parts, and the check that each image has one row
worker    what an actor does: one part at a time
run       the job from start to check
"""

from __future__ import annotations

from marrowscope.cluster.run import predict_cluster
from marrowscope.cluster.target import MANIFEST, Manifest

__all__ = ["MANIFEST", "Manifest", "predict_cluster"]
