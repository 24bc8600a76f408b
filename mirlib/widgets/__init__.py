"""Widgets that compute in the page: with a kernel in Jupyter, and without one in the built book."""

from mirlib.widgets.ask_the_model import AskTheModel
from mirlib.widgets.base import StaticWidget
from mirlib.widgets.patch_costs import PatchCosts
from mirlib.widgets.questions import quiz
from mirlib.widgets.robustness import RobustnessPicker
from mirlib.widgets.the_model import TheModel
from mirlib.widgets.train_in_page import TrainInPage
from mirlib.widgets.two_clouds import TwoClouds

__all__ = [
    "AskTheModel",
    "PatchCosts",
    "RobustnessPicker",
    "StaticWidget",
    "TheModel",
    "TrainInPage",
    "TwoClouds",
    "quiz",
]
