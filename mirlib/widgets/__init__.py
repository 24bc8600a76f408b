"""Widgets that compute in the page: with a kernel in Jupyter, and without one in the built book."""

from mirlib.widgets.base import StaticWidget
from mirlib.widgets.two_clouds import TwoClouds

__all__ = ["StaticWidget", "TwoClouds"]
