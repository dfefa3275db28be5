"""The report's figures, one function each, in plotly. A function returns None where there is nothing to draw yet.

`kdstudy.analysis.exhibits.catalogue` lists them by name; accuracies are in percent, gains and prices in percentage
points.
"""
