"""The paper, figure by figure: which runs a figure is made of, what it claims, and whether that holds here.

May import: everything but the command line.
"""
