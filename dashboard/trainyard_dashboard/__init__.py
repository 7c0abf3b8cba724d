"""The dashboard: a read-only web page about runs, scaling, cost and served models."""
