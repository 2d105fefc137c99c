"""The report stage: from the files of a run folder to one page that needs nothing else.

inputs      run folder -> RunFiles         the only module that reads a run's files
thumbnails  pictures   -> small JPEGs      within a budget of bytes
content     RunFiles   -> Content          every figure, list and sentence, in display order
charts      numbers    -> inline SVG
html        Content    -> report.html
markdown    Content    -> report.md
"""

from marrowscope.report.write import write_charts, write_report

__all__ = ["write_charts", "write_report"]
