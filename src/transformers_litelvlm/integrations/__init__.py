"""Masks by sentences inside annotation tools: one module for each. Nothing here is imported unless a tool asks."""
