"""The red team: model extraction attacks and honest clients, as a library and as a command.

Everything here speaks to any endpoint of the Open Inference Protocol, as a stranger would: with an API key and nothing
else.
"""
