"""Reports of a lint run, one format a file; no proof."""
