"""One page per study, `report.html`, with all that its results show: it opens from disk and loads nothing."""
