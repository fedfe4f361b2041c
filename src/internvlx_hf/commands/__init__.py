"""What `internvlx` can do, a module a sub-command: its `main(arguments)` parses them and does the work."""
