"""A run's best model as one ONNX file that carries all that serving needs; smaller or faster ones pass a gate.

run          export_onnx: from a run folder to a file that was checked
graph        from torch to ONNX, in fp32 and with weights stored in fewer bytes (fp16, int8-weights)
calibrate    what values the tensors of a network take on real cells, and the range that eight bits should cover
quantise     int8: which layers, with which ranges
parity       whether a file answers as the checkpoint does, and how fast it is
"""

from __future__ import annotations

from marrowscope.export.parity import TOLERANCE, Parity
from marrowscope.export.run import Precision, export_onnx

__all__ = ["TOLERANCE", "Parity", "Precision", "export_onnx"]
