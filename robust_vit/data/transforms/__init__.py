"""Transforms of single images on the host; `data.host` knows them by name."""
