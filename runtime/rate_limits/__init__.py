"""Rate limits per client with GCRA: the algorithm (``gcra``) and its stores (``memory``, ``redis``)."""
