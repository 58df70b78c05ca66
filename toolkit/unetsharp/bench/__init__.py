"""How fast a network is here: stage by stage, end to end, beside its peers in the same run."""
