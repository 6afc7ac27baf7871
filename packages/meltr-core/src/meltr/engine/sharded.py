"""TEMPORARY stand-in."""


def save_sharded(folder, model, optimizer):
    raise AssertionError


def load_sharded(folder, model, optimizer):
    raise AssertionError


def load_full(tensors, model, optimizer, state):
    raise AssertionError
