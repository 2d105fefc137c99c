"""What passes between stages: tables as CSV, documents as JSON; each typed, versioned, checked on reading.

    index.csv        path,label,width,height,bytes,sha256,status[,group,slide,patient,original]
    split.csv        path,label,part[,fold]  with split.json beside it (seed, rule, class set, index hash, counts)
    predictions.csv  path,status,predicted,confidence,<one column per class code>[,truth]
    evaluation.json  every figure as {value, low, high, n, method}
    card.json        what a model is: classes, preprocessing, training data, scores (also in the ONNX metadata)
    run.json         how a run folder came about: data, seed, versions

Writers are atomic (see `files`); readers raise `FileFormatError` that names the file, the line and what is allowed.
Paths in tables are relative to the data folder and POSIX.
"""

from __future__ import annotations

from marrowscope.schema.base import (
    NOT_A_MEDICAL_DEVICE,
    OK,
    PARTS,
    Document,
    Frozen,
    Part,
    to_json,
    validation_lines,
)
from marrowscope.schema.documents import (
    Card,
    CardAcceptance,
    CardConformal,
    CardNovelty,
    CardScaling,
    Preprocessing,
    RunInfo,
    SplitInfo,
    TrainingData,
)
from marrowscope.schema.evaluation import (
    Calibration,
    ClassFigures,
    ConformalSets,
    Evaluation,
    Figure,
    OperatingPoint,
    PublishedFigures,
    ReliabilityBin,
    RiskPoint,
)
from marrowscope.schema.tables import (
    INDEX_COLUMNS,
    INDEX_EXTRA_COLUMNS,
    METRIC_COLUMNS,
    SPLIT_COLUMNS,
    IndexRow,
    Predictions,
    Split,
    SplitRow,
    count_parts,
    index_hash,
    read_index,
    read_metrics,
    write_index,
    write_metrics,
)

__all__ = [
    "INDEX_COLUMNS",
    "INDEX_EXTRA_COLUMNS",
    "METRIC_COLUMNS",
    "NOT_A_MEDICAL_DEVICE",
    "OK",
    "PARTS",
    "SPLIT_COLUMNS",
    "Calibration",
    "Card",
    "CardAcceptance",
    "CardConformal",
    "CardNovelty",
    "CardScaling",
    "ClassFigures",
    "ConformalSets",
    "Document",
    "Evaluation",
    "Figure",
    "Frozen",
    "IndexRow",
    "OperatingPoint",
    "Part",
    "Predictions",
    "Preprocessing",
    "PublishedFigures",
    "ReliabilityBin",
    "RiskPoint",
    "RunInfo",
    "Split",
    "SplitInfo",
    "SplitRow",
    "TrainingData",
    "count_parts",
    "index_hash",
    "read_index",
    "read_metrics",
    "to_json",
    "validation_lines",
    "write_index",
    "write_metrics",
]
