"""Finds plugins without importing torch, and creates the plugin manager of a run.

A broken plugin does not affect the others: each is loaded and checked alone, and its error is kept in
`Registry.broken`. Nothing from a broken plugin stays registered.
"""

from meltr.plugins.checks import KINDS as KINDS
from meltr.plugins.discovery import BUILTIN as BUILTIN
from meltr.plugins.discovery import GROUP as GROUP
from meltr.plugins.discovery import discover as discover
from meltr.plugins.registry import BrokenPlugin as BrokenPlugin
from meltr.plugins.registry import Registry as Registry
from meltr.plugins.runs import REQUIRED_HOOKS as REQUIRED_HOOKS
from meltr.plugins.runs import load_object as load_object
from meltr.plugins.runs import run_manager as run_manager
