"""From a captured step to compiled halves: the partition, the check of generated code, the one delivery."""
