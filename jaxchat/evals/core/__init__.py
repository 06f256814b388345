"""CORE: the centred accuracy over 22 tasks of DCLM (arXiv 2406.11794), with nanochat's scores."""
