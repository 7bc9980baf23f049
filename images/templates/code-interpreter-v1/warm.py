"""Imports what programs import most, and draws a plot: afterwards the bytecode and matplotlib's list of fonts are on the disk.

pip could compile all packages, but that is three times as much, and half of it is their tests.
"""

import importlib
import importlib.util
import io
import multiprocessing

MODULES = [
    "sympy", "sklearn.ensemble", "IPython", "ipykernel.kernelapp", "seaborn", "scipy.stats", "jupyter_client.manager", "sklearn.linear_model",
    "tornado.web", "openpyxl", "requests", "bs4", "lxml.etree", "matplotlib_inline.backend_inline",
]  # fmt: skip


def load(name):
    if importlib.util.find_spec(name.split(".")[0]):  # a template may have fewer packages
        importlib.import_module(name)


def draw():
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.plot([1, 2, 3])
    pyplot.savefig(io.BytesIO())


if __name__ == "__main__":
    with multiprocessing.Pool() as pool:
        pool.map(load, MODULES, chunksize=1)
        pool.apply(draw)
