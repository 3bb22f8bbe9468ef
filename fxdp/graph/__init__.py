"""The joint graph: what is known of it, what a pass is, how nodes are emitted."""
