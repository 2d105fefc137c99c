"""Where a model errs, and on what: files in, analysis.json out. numpy, and umap-learn where it is there.

mistakes     confused pairs, confident mistakes, uncertain cells, doubtful labels
quality      errors against brightness, sharpness, size ... of the pictures
feature_map  the model's features in the plane
studies      published accuracies beside this one
pictures     the pictures that a table of predictions names
run          all of it: the stage `marrowscope analyse`
"""

from marrowscope.analysis.run import analyse_csv, analyse_predictions

__all__ = ["analyse_csv", "analyse_predictions"]
