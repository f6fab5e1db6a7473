"""The paper's comparisons, on any backbone: each file but the common ones is one experiment."""
