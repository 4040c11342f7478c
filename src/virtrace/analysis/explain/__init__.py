"""Answers to what a trace shows: an explainer for each kind of case, its causes as data."""
