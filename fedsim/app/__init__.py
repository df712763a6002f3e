"""The application: the only place that composes data, strategies, clients and evaluation."""
