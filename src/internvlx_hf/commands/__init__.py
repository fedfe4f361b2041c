"""What `internvlx` can do, a module a sub-command: its `main(arguments)` parses them and does the work.

What takes time to import is imported after the arguments are parsed, so that `--help` is quick; `registration` before
anything that loads a checkpoint.
"""
