"""The page of a run: `report/index.html` in its folder, one self-contained file that opens from disk.

    report.write("runs/digits")                        of the files that the run has left
    report.write("runs/digits", context, batches)      attacks some examples first, for the example browser

`content` reads the run's files into plain values, `stories` the ledger into sentences, `browser` turns examples into
what the script of the page shows, `page` fills the templates; `board` is the table of many runs.
"""

from robust_vit import lazy

__getattr__, __dir__ = lazy.attach(
    __name__, modules=lazy.submodules(__path__), objects={"write": "page", "attempt": "page", "compare": "pair"}
)
