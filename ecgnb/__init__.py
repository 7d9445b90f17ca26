"""The research notebook package for ECG deep learning."""

from .registry import connector, encoder, objective, representation, source

__version__ = '0.1.0'
