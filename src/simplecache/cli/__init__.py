"""The ``scs`` command: ``main.py`` and one file a command."""
