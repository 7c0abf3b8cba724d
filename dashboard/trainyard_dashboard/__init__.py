"""The dashboard: a page about runs, scaling, cost and served models. It changes nothing."""
