"""What passes between stages: tables as CSV, documents as JSON; each typed, versioned, checked on reading.

    index.csv        path,label,width,height,bytes,sha256,status[,group,slide,patient,original]
    split.csv        path,label,part[,fold]  with split.json beside it (seed, rule, class set, index hash, counts)
    predictions.csv  path,status,predicted,confidence,<one column per class code>[,truth][,conformal_set][,ood_score]
                     [,ood][,accepted]; a column is there where the model has such a thing, and its cells are empty in
                     rows without an answer; conformal_set has codes with | between them (empty: no class fits), ood and
                     accepted are 0 or 1
    evaluation.json  every figure as {value, low, high, n, method}
    analysis.json    where a model errs: pairs, mistakes, doubtful labels, quality of the pictures, map of the features
    explanations.json, explanation-tests.json    heat maps of cells; which of their methods passed which tests
    card.json        what a model is: classes, preprocessing, training data, scores (also in the ONNX metadata)
    run.json         how a run folder came about: data, seed, versions

Writers are atomic (see `files`); readers raise `FileFormatError` that names the file, the line and what is allowed.
Paths in tables are relative to the data folder and POSIX.
"""

from __future__ import annotations

from marrowscope.schema.analysis import (
    Analysis,
    ConfusedPair,
    DoubtfulCell,
    FeatureMap,
    LabelCandidate,
    QualityBin,
    QualityMeasure,
    Study,
)
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
    CardMember,
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
    Novelty,
    NoveltyScore,
    OperatingPoint,
    PublishedFigures,
    ReliabilityBin,
    RiskPoint,
    Robustness,
    RobustnessKind,
    RobustnessPoint,
    StrangerKind,
)
from marrowscope.schema.explanations import (
    CascadeStep,
    ExplainedPicture,
    ExplanationCheck,
    ExplanationGrid,
    ExplanationMethod,
    Explanations,
    ExplanationTests,
    MethodTests,
)
from marrowscope.schema.predictions import TRIAGE_COLUMNS, Predictions
from marrowscope.schema.tables import (
    INDEX_COLUMNS,
    INDEX_EXTRA_COLUMNS,
    METRIC_COLUMNS,
    SPLIT_COLUMNS,
    IndexRow,
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
    "TRIAGE_COLUMNS",
    "Analysis",
    "Calibration",
    "Card",
    "CardAcceptance",
    "CardConformal",
    "CardMember",
    "CardNovelty",
    "CardScaling",
    "CascadeStep",
    "ClassFigures",
    "ConformalSets",
    "ConfusedPair",
    "Document",
    "DoubtfulCell",
    "Evaluation",
    "ExplainedPicture",
    "ExplanationCheck",
    "ExplanationGrid",
    "ExplanationMethod",
    "ExplanationTests",
    "Explanations",
    "FeatureMap",
    "Figure",
    "Frozen",
    "IndexRow",
    "LabelCandidate",
    "MethodTests",
    "Novelty",
    "NoveltyScore",
    "OperatingPoint",
    "Part",
    "Predictions",
    "Preprocessing",
    "PublishedFigures",
    "QualityBin",
    "QualityMeasure",
    "ReliabilityBin",
    "RiskPoint",
    "Robustness",
    "RobustnessKind",
    "RobustnessPoint",
    "RunInfo",
    "Split",
    "SplitInfo",
    "SplitRow",
    "StrangerKind",
    "Study",
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
