"""The Python interface, `import dino_path`: what the command line calls, with the words of the commands."""
