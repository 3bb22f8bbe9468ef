"""From a model and its arguments to a captured step; the only package that patches torch."""
