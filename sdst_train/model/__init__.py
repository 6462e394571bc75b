"""SDST: streams, RDSA in both its forms, heads, and the session that runs them in torch."""
