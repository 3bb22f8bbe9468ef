"""From a captured step to compiled halves: partition, check of generated code, one delivery."""
