"""Bytes on disk, whole or not at all: files and lines, verified tensors, and settings that must not change."""
