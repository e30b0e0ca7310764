"""From files to batches. `prepare` and `dataset` put the packages to work:

reading → rows → templates → tokens → storage, beside them repeats (duplicates) and showing (pages).
"""
