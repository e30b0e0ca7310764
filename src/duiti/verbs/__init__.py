"""The verbs of the command line, a module each, a few lines over the function that does the work.

`duiti.cli` imports one when it is used; torch waits inside them, so that their help is instant too.
Results go to stdout, everything else to stderr.
"""
