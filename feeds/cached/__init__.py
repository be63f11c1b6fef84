"""The cached feeds: what Redis holds, who writes it, and how a reader checks that it is valid."""
