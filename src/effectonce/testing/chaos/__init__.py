"""Consumers killed, frozen and replaced while a journal keeps what truly took effect.

`run.run(Spec(...), broker, watch)` plays one run; its docstring draws the parts.
"""
