"""The command line: words to functions, answers to text and exit codes."""
