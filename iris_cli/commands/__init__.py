"""The command line: one file per command with its options, help, example and rendering.

A command parses words, calls one function of `workflows/`, and shows what came back: results on
standard output, messages on standard error. No command computes anything, and none imports torch
before it must: `iris --help` stays quick.
"""
