"""Questions about videos over HTTP: FastAPI in front, the model in a process of its own behind, and one page."""
