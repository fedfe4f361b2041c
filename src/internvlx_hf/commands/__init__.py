"""What `internvlx` can do, a module a sub-command: its `main(arguments)` parses them and does the work.

Modules that are slow to import are imported after the arguments are parsed, so that `--help` is quick. `registration`
is imported before anything that loads a checkpoint.
"""
