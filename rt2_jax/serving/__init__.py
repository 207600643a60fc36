"""A policy as a service that several robots query."""
