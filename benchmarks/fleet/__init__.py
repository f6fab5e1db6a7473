"""A fleet of replicas on paper: what one replica does with its time is measured, what a hundred do is simulated."""
