"""Objectives: banks of images that are optimised against a frozen backbone."""
